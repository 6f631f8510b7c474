// For admins: who did what to whom.

import { $, act, cell, code, pages, text } from "/page/dom.js";

function path() {
  const query = new URLSearchParams({ limit: 20 });
  for (const field of $("audit-filter").elements) if (field.name && field.value.trim()) query.set(field.name, field.value.trim());
  return `/admin/audit?${query}`;
}

export const drawAudit = pages({
  rows: "audit-rows",
  more: "audit-more",
  note: "audit-note",
  none: "audit-none",
  path,
  draw(row, deed) {
    const { reason, ...more } = deed.detail;
    cell(row, new Date(deed.at).toLocaleString());
    cell(row, code(deed.action));
    cell(row, deed.actor);
    cell(row, deed.target);
    cell(row, reason ?? "", Object.keys(more).length ? code(` ${JSON.stringify(more)}`) : "");
  },
});

export function clearAudit() {
  $("audit-filter").reset();
  $("audit-rows").replaceChildren();
  text("audit-note", "");
}

$("audit-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  act("audit-note", drawAudit)();
});
