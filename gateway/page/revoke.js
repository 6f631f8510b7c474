// For admins: who is live, and revocations with their receipts.

import { $, act, button, cell, code, count, make, pages, text } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { ask, state } from "/page/service.js";

let pending = null; // the revocation that was counted and not yet made

export function clearRevoke() {
  pending = null;
  $("revoke").reset();
  retarget("sid");
  for (const id of ["live", "known"]) $(id).replaceChildren();
  for (const id of ["dry", "receipt"]) $(id).hidden = true;
  for (const id of ["live-note", "revoke-error"]) text(id, "");
}

const drawLive = pages({
  rows: "live",
  more: "live-more",
  note: "live-note",
  none: "live-none",
  path: () => "/admin/sessions?limit=20",
  draw(row, session) {
    $("known").append(make("option", "", { value: session.sid }));
    cell(row, session.user ? code(session.user) : session.kind);
    cell(row, code(session.sid));
    cell(row, session.device || "", session.impersonated_by ? " (an admin acts here)" : "");
    cell(row, String(session.connections ?? "?"));
    cell(row, button("Choose", () => choose(session.sid), `the session ${session.sid}`));
  },
});

export async function liveSessions() {
  $("known").replaceChildren();
  await drawLive();
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
    await follow(await whenFresh(() => ask("POST", "/admin/revocations", pending)));
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
