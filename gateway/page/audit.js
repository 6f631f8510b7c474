// For admins: who did what to whom.

import { $, act, cell, code, filtered, pages, text } from "/page/dom.js";

export const drawAudit = pages({
  rows: "audit-rows",
  more: "audit-more",
  note: "audit-note",
  none: "audit-none",
  path: () => filtered("/admin/audit", "audit-filter"),
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
