// For admins: work that waits or was given up.

import { $, act, ago, button, cell, code, pages, text } from "/page/dom.js";
import { ask } from "/page/service.js";

/** What can be done about a job: what comes again by itself cannot be dropped, and with `vain` no other try can help. */
export function jobDeeds(job, note, after, vain = false) {
  const about = `${job.kind}, made ${ago(job.created_at)}`;
  const one = `/admin/jobs/${job.id}`;
  const retry = button("Retry", act(note, () => ask("POST", `${one}/retry`, {}), after), about);
  const drop = button("Drop", act(note, () => ask("DELETE", one), after), about);
  return [...(vain ? [] : [retry, " "]), ...(job.periodic ? [] : [drop])];
}

export const jobState = (job) => (job.state === "dead" ? "given up" : `due ${new Date(job.due_at).toLocaleTimeString()}`);

export const drawJobs = pages({
  rows: "jobs-rows",
  more: "jobs-more",
  note: "jobs-note",
  none: "jobs-none",
  path: () => `/admin/jobs?limit=20&state=${$("jobs-state").value}`,
  draw(row, job) {
    cell(row, code(job.kind));
    cell(row, jobState(job), job.periodic ? ", again and again" : "");
    cell(row, String(job.attempts));
    cell(row, job.error);
    cell(row, ...jobDeeds(job, "jobs-note", drawJobs));
  },
});

export function clearJobs() {
  $("jobs-rows").replaceChildren();
  text("jobs-note", "");
}

$("jobs-state").addEventListener("change", act("jobs-note", drawJobs));
$("jobs-again").addEventListener("click", act("jobs-note", drawJobs));
