// For admins: who is live, revocations with their receipts, jobs, webhooks, and the letters of dev.

import { $, act, ago, button, cell, code, count, make, onSubmit, text } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { ask, state } from "/page/service.js";

let pending = null; // the revocation that was counted and not yet made

/** Draw what an admin sees beside the live sessions. */
export async function drawAdmin(doors) {
  $("letters").hidden = !doors.letters;
  await Promise.all([jobs(), webhooks(), doors.letters ? letters() : null]);
}

/** Leave nothing of it on the page for whoever comes next. */
export function clearAdmin() {
  pending = null;
  hideSecret();
  for (const id of ["live", "known", "jobs-rows", "webhooks", "letters-list"]) $(id).replaceChildren();
  $("lost").reset();
  for (const id of ["lost-note", "lost-error"]) text(id, "");
  for (const id of ["dry", "receipt"]) $(id).hidden = true;
}

// --- live sessions and their end ---

export async function liveSessions() {
  const { items } = await ask("GET", "/admin/sessions?limit=100");
  $("live").replaceChildren();
  $("known").replaceChildren(...items.map((s) => make("option", "", { value: s.sid })));
  for (const session of items) {
    const row = $("live").insertRow();
    cell(row, session.user ? code(session.user) : session.kind);
    cell(row, code(session.sid));
    cell(row, session.device || "");
    cell(row, String(session.connections));
    cell(row, button("Choose", () => choose(session.sid), `the session ${session.sid}`));
  }
}

function choose(sid) {
  const { target, id } = $("revoke").elements;
  target.value = "sid";
  retarget("sid");
  id.value = sid;
  id.focus();
}

function retarget(kind) {
  $("target-field").hidden = kind === "all";
  text("target-label", kind === "sid" ? "Session id" : "User id");
}

$("revoke").addEventListener("change", ({ target }) => target.name === "target" && retarget(target.value));
$("live-again").addEventListener("click", act("live-note", liveSessions));

$("revoke").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { target, id, reason } = event.target.elements;
  const body = { target: target.value === "all" ? { all: true } : { [target.value]: id.value.trim() }, reason: reason.value.trim() };
  text("revoke-error", "");
  $("receipt").hidden = true;
  try {
    const dry = await ask("POST", "/admin/revocations", { ...body, dry_run: true });
    pending = { ...body, confirm: dry.confirm };
    text("dry-text", `This ends ${count(dry.sessions, "session")} of ${count(dry.users, "user")} and closes ${count(dry.connections, "connection")}.`);
    $("dry").hidden = false;
    $("revoke-now").focus();
  } catch (error) {
    text("revoke-error", error.message);
  }
});

$("revoke-not").addEventListener("click", () => {
  pending = null;
  $("dry").hidden = true;
});

$("revoke-now").addEventListener("click", async () => {
  $("dry").hidden = true;
  try {
    await follow(await ask("POST", "/admin/revocations", pending));
  } catch (error) {
    if (state.me) text("revoke-error", error.message);
  }
});

async function follow(receipt) {
  for (let round = 0; round < 60 && state.me; round++) {
    drawReceipt(receipt);
    if (receipt.state === "confirmed" && round > 2) break;
    await new Promise((resolve) => setTimeout(resolve, 250));
    receipt = await ask("GET", `/admin/revocations/${receipt.id}`);
  }
  if (state.me) await liveSessions();
}

function drawReceipt(receipt) {
  $("receipt").hidden = false;
  text("receipt-id", receipt.id);
  text("receipt-state", receipt.state === "confirmed" ? `Confirmed by ${receipt.by === "acks" ? "every node" : "the lease"} in ${receipt.elapsed_ms} ms.` : "Committed, waiting for the nodes.");
  const facts = { Sessions: receipt.sessions, "Connections closed": receipt.connections_closed, Position: receipt.position };
  $("receipt-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", name), make("dd", String(value))]));
  $("receipt-nodes").replaceChildren();
  for (const node of receipt.nodes) {
    const row = $("receipt-nodes").insertRow();
    cell(row, code(node.node));
    cell(row, node.applied_at ? new Date(node.applied_at).toLocaleTimeString() : "");
    cell(row, String(node.connections_closed));
  }
}

// --- who has lost their second factors ---

onSubmit("lost", "lost-note", "lost-error", async ({ user, reason }) => {
  const path = `/admin/users/${encodeURIComponent(user.value.trim())}/factors`;
  await whenFresh(() => ask("DELETE", path, { reason: reason.value.trim() }));
  $("lost").reset();
  return "Their factors are gone, and their sessions ended.";
});

// --- jobs ---

async function jobs() {
  const { items, next } = await ask("GET", `/admin/jobs?limit=50&state=${$("jobs-state").value}`);
  $("jobs-rows").replaceChildren();
  for (const job of items) {
    const row = $("jobs-rows").insertRow();
    const about = `${job.kind}, made ${ago(job.created_at)}`;
    cell(row, code(job.kind));
    cell(row, job.state === "dead" ? "given up" : `due ${new Date(job.due_at).toLocaleTimeString()}`);
    cell(row, String(job.attempts));
    cell(row, job.error);
    cell(
      row,
      button("Retry", act("jobs-note", () => ask("POST", `/admin/jobs/${job.id}/retry`, {}), jobs), about),
      " ",
      button("Drop", act("jobs-note", () => ask("DELETE", `/admin/jobs/${job.id}`), jobs), about),
    );
  }
  text("jobs-count", items.length ? (next ? "The newest 50 of more." : "") : "There are none.");
}

$("jobs-state").addEventListener("change", act("jobs-note", jobs));
$("jobs-again").addEventListener("click", act("jobs-note", jobs));

// --- webhooks ---

async function webhooks() {
  const { items } = await ask("GET", "/admin/webhooks");
  $("webhooks").replaceChildren();
  for (const webhook of items) {
    const row = $("webhooks").insertRow();
    const one = `/admin/webhooks/${webhook.id}`;
    const deed = (label, method, path) => button(label, act("webhooks-note", () => ask(method, path, method === "POST" ? {} : undefined), webhooks), webhook.url);
    cell(row, code(webhook.url));
    cell(row, webhook.events.join(" "));
    cell(row, webhook.disabled_at ? `off: ${webhook.disabled_why}` : webhook.delivered_at ? ago(webhook.delivered_at) : "none yet");
    cell(row, webhook.disabled_at ? deed("Enable", "POST", `${one}/enable`) : deed("Test", "POST", `${one}/test`), " ", deed("Delete", "DELETE", one));
  }
}

onSubmit("webhook-new", "webhook-note", "webhook-error", async ({ url, events }) => {
  hideSecret();
  const made = await ask("POST", "/admin/webhooks", { url: url.value.trim(), events: events.value.split(/\s+/).filter(Boolean) });
  $("webhook-new").reset();
  text("webhook-secret", made.secret);
  $("webhook-made").hidden = false;
  $("webhook-secret").focus();
  await webhooks();
});

function hideSecret() {
  text("webhook-secret", "");
  $("webhook-made").hidden = true;
}

$("webhook-kept").addEventListener("click", () => {
  hideSecret();
  $("webhook-new").elements.url.focus();
});
$("webhooks-again").addEventListener("click", act("webhooks-note", webhooks));

// --- the letters of dev ---

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
