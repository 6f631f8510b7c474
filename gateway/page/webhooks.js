// For admins: addresses that hear what happens, and what has not reached them.

import { decide, showSecret } from "/page/dialogs.js";
import { $, act, ago, button, cell, code, count, local, onSubmit, text } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { jobDeeds, jobState } from "/page/jobs.js";
import { ask } from "/page/service.js";

const HOUR = 3_600_000;
const SHOWN = 20; // deliveries

export async function drawWebhooks() {
  const [{ items }, { items: waiting, next }] = await Promise.all([ask("GET", "/admin/webhooks"), ask("GET", `/admin/jobs?kind=webhook&limit=${SHOWN}`)]);
  $("webhooks-rows").replaceChildren();
  $("webhooks-none").hidden = items.length > 0;
  items.forEach(draw);
  deliveries(waiting, new Map(items.map((webhook) => [webhook.id, webhook])), next);
}

export function clearWebhooks() {
  for (const id of ["webhooks-rows", "deliveries-rows"]) $(id).replaceChildren();
  $("webhook-new").reset();
  for (const id of ["webhook-note", "webhook-error", "webhooks-note"]) text(id, "");
}

function draw(webhook) {
  const row = $("webhooks-rows").insertRow();
  const one = `/admin/webhooks/${webhook.id}`;
  const deed = (label, action) => button(label, act("webhooks-note", () => whenFresh(action), drawWebhooks), webhook.url);
  cell(row, code(webhook.url));
  cell(row, webhook.events.join(" "));
  cell(row, webhook.disabled_at ? `off: ${webhook.disabled_why}` : webhook.delivered_at ? ago(webhook.delivered_at) : "none yet");
  cell(
    row,
    webhook.disabled_at ? deed("Enable", () => ask("POST", `${one}/enable`, {})) : deed("Test", () => ask("POST", `${one}/test`, {})),
    " ",
    button("Replay", () => replay(webhook), webhook.url),
    " ",
    deed("Delete", () => ask("DELETE", one)),
  );
}

async function replay(webhook) {
  text("webhooks-note", "");
  try {
    const field = { label: "What happened since", type: "datetime-local", value: local(Date.now() - HOUR) };
    const { more } = await decide({ title: `Send again: ${webhook.url}`, words: "What it wanted of that goes out as new events.", yes: "Replay", field });
    const since = new Date(more);
    if (Number.isNaN(since.getTime())) throw new Error("Say since when, please.");
    const { events } = await whenFresh(() => ask("POST", `/admin/webhooks/${webhook.id}/replay`, { since: since.toISOString() }));
    await drawWebhooks();
    text("webhooks-note", `${count(events, "event")} to be sent again.`);
  } catch (error) {
    text("webhooks-note", error.message);
  }
}

function deliveries(jobs, known, more) {
  $("deliveries-rows").replaceChildren();
  for (const job of jobs) {
    const row = $("deliveries-rows").insertRow();
    const { type = "an event", webhook = "" } = job.payload ?? {}; // null without the scope `audit`
    cell(row, code(type));
    const to = known.get(webhook.replaceAll("-", ""));
    cell(row, to ? to.url : "one that is gone");
    cell(row, jobState(job));
    cell(row, String(job.attempts));
    cell(row, job.error);
    cell(row, ...jobDeeds(job, "webhooks-note", drawWebhooks, !to || Boolean(to.disabled_at)));
  }
  text("deliveries-count", jobs.length ? (more ? `The newest ${SHOWN} of more: see the jobs.` : "") : "There are none.");
}

onSubmit("webhook-new", "webhook-note", "webhook-error", async ({ url, events }) => {
  const made = await whenFresh(() => ask("POST", "/admin/webhooks", { url: url.value.trim(), events: events.value.split(/\s+/).filter(Boolean) }));
  $("webhook-new").reset();
  await drawWebhooks();
  showSecret("Its secret, with which every event is signed.", made.secret);
});

$("webhooks-again").addEventListener("click", act("webhooks-note", drawWebhooks));
