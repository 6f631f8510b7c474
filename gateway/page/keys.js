// For admins: API keys, and the service accounts that they belong to.

import { decide, showSecret } from "/page/dialogs.js";
import { $, act, ago, button, cell, code, count, make, onSubmit, pages } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { ask } from "/page/service.js";

const DAY = 86_400_000;
const HOUR = 3600;
const words = (text) => text.split(/\s+/).filter(Boolean);

export async function drawKeys() {
  await Promise.all([keys(), services()]);
}

export function clearKeys() {
  for (const id of ["keys-rows", "services-rows", "key-whose"]) $(id).replaceChildren();
  for (const id of ["key-new", "service-new"]) $(id).reset();
  for (const id of ["keys-note", "key-error", "service-note", "service-error"]) $(id).textContent = "";
}

// --- keys ---

const keys = pages({
  rows: "keys-rows",
  more: "keys-more",
  note: "keys-note",
  none: "keys-none",
  path: () => `/admin/keys?limit=20${$("keys-revoked").checked ? "" : "&revoked=false"}`,
  draw(row, key) {
    const one = `/admin/keys/${key.id}`;
    cell(row, key.name);
    cell(row, key.service_account ?? (key.owner ? code(key.owner) : "nobody's"));
    cell(row, key.scopes.join(" "));
    cell(row, standing(key));
    cell(row, key.last_used_at ? ago(key.last_used_at) : "never");
    if (key.revoked_at) cell(row);
    else cell(row, button("Rotate", act("keys-note", () => rotate(one, key), keys), key.name), " ", button("Revoke", act("keys-note", () => revoke(one, key), keys), key.name));
  },
});

const time = (at) => new Date(at).toLocaleString();

function standing(key) {
  if (key.revoked_at) return `revoked ${time(key.revoked_at)}`;
  const parts = [key.expires_at ? `good until ${time(key.expires_at)}` : "good for ever"];
  if (key.previous_until && Date.parse(key.previous_until) > Date.now()) parts.push(`the secret before until ${time(key.previous_until)}`);
  return parts.join(", ");
}

async function rotate(one, key) {
  const field = { label: "Hours for which the one before is good as well", type: "number", value: "1" };
  const { more } = await decide({ title: `Another secret: ${key.name}`, yes: "Rotate", field });
  const made = await whenFresh(() => ask("POST", `${one}/rotation`, { overlap_seconds: Number(more) * HOUR }));
  showSecret(`The new secret of ${key.name}.`, made.secret);
}

async function revoke(one, key) {
  await decide({ title: `Revoke: ${key.name}`, words: "Every node refuses it from now on, for good.", yes: "Revoke", danger: true });
  await whenFresh(() => ask("DELETE", one));
}

onSubmit("key-new", "keys-note", "key-error", async ({ name, scopes, service, days }) => {
  const body = { name: name.value.trim(), scopes: words(scopes.value) };
  if (service.value) body.service_account = service.value;
  if (days.value) body.expires_at = new Date(Date.now() + Number(days.value) * DAY).toISOString();
  const { secret } = await whenFresh(() => ask("POST", "/admin/keys", body));
  $("key-new").reset();
  await drawKeys();
  showSecret(`The secret of ${body.name}.`, secret);
  return "It is made.";
});

$("keys-revoked").addEventListener("change", act("keys-note", keys));
$("keys-again").addEventListener("click", act("keys-note", drawKeys));

// --- service accounts ---

async function services() {
  const { items } = await ask("GET", "/admin/service-accounts?limit=200");
  const chosen = $("key-whose").value;
  const enabled = items.filter((account) => !account.disabled_at);
  $("key-whose").replaceChildren(make("option", "mine", { value: "" }), ...enabled.map(({ name }) => make("option", `the service account ${name}`, { value: name })));
  $("key-whose").value = enabled.some(({ name }) => name === chosen) ? chosen : "";
  $("services-rows").replaceChildren();
  $("services-none").hidden = items.length > 0;
  for (const account of items) {
    const row = $("services-rows").insertRow();
    cell(row, account.name);
    cell(row, count(account.keys, "key"));
    cell(row, account.disabled_at ? `disabled ${time(account.disabled_at)}` : "good");
    cell(row, button(account.disabled_at ? "Enable" : "Disable", act("service-note", () => turn(account), drawKeys), account.name));
  }
}

async function turn({ name, disabled_at: off }) {
  const label = off ? "Enable" : "Disable";
  const { reason } = await decide({ title: `${label}: ${name}`, words: off ? "Its keys are good again." : "None of its keys is good from now on.", yes: label, why: true, danger: !off });
  await whenFresh(() => ask("PATCH", `/admin/service-accounts/${encodeURIComponent(name)}`, { disabled: !off, reason }));
}

onSubmit("service-new", "service-note", "service-error", async ({ name }) => {
  const made = await whenFresh(() => ask("POST", "/admin/service-accounts", { name: name.value.trim() }));
  $("service-new").reset();
  await services();
  $("key-whose").value = made.name;
  return "It is made: now it needs a key.";
});
