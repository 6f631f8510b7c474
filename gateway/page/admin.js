// What admins see, put together; and the letters that development writes.

import { clearAudit, drawAudit } from "/page/audit.js";
import { $, act, ago, make, text } from "/page/dom.js";
import { clearJobs, drawJobs } from "/page/jobs.js";
import { clearKeys, drawKeys } from "/page/keys.js";
import { clearPeople, drawPeople } from "/page/people.js";
import { clearRevoke } from "/page/revoke.js";
import { ask } from "/page/service.js";
import { clearWebhooks, drawWebhooks } from "/page/webhooks.js";

/** Draw what an admin sees beside the live sessions. */
export async function drawAdmin(doors) {
  for (const id of ["letters", "letters-way"]) $(id).hidden = !doors.letters;
  await Promise.all([drawPeople(), drawKeys(), drawJobs(), drawWebhooks(), drawAudit(), doors.letters ? letters() : null]);
}

/** Leave nothing of it on the page for whoever comes next. */
export function clearAdmin() {
  for (const clear of [clearPeople, clearRevoke, clearKeys, clearJobs, clearWebhooks, clearAudit]) clear();
  $("letters-list").replaceChildren();
}

async function letters() {
  const { items } = await ask("GET", "/dev/mail");
  $("letters-list").replaceChildren(...items.map(drawLetter));
  text("letters-count", items.length ? "" : "None was written yet.");
}

function drawLetter({ to, subject, at, text: words, link }) {
  const item = make("li");
  const fold = make("details");
  fold.append(make("summary", `${subject} · to ${to} · ${ago(at)}`), make("p", words, { className: "letter" }));
  item.append(fold);
  if (link) item.append(make("a", `Open the link of “${subject}”`, { href: link }));
  return item;
}

$("letters-again").addEventListener("click", act("letters-note", letters));
