// For admins: who has an account, and what can be done about one: shut out, let in, help, give out, delete.

import { begin } from "/page/acting.js";
import { decide } from "/page/dialogs.js";
import { $, act, ago, button, cell, code, filtered, local, make, pages, text } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { ask, keep, state } from "/page/service.js";

const DAY = 86_400_000;

const until = (time) => new Date(time).toLocaleString();

// --- the list ---

export const drawPeople = pages({
  rows: "people-rows",
  more: "people-more",
  note: "people-note",
  none: "people-none",
  path: () => filtered("/admin/users", "people-filter"),
  draw(row, user) {
    cell(row, user.display_name || "no name");
    cell(row, user.email);
    cell(row, user.roles.join(" "));
    cell(row, standing(user));
    cell(row, user.last_login_at ? ago(user.last_login_at) : "never");
    cell(row, button("Choose", () => choose(user), user.email));
  },
});

export function clearPeople() {
  $("people-filter").reset();
  $("people-rows").replaceChildren();
  leave();
  text("people-note", "");
}

const standing = (user) => (user.disabled ? "disabled" : user.banned_until ? `banned until ${until(user.banned_until)}` : "may come in");

$("people-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  leave();
  act("people-note", drawPeople)();
});

// --- one of them ---

function choose(user) {
  draw(user);
  text("person-note", "");
  $("person").hidden = false;
  $("person-title").focus();
}

function leave() {
  $("person").hidden = true;
  for (const id of ["person-facts", "person-deeds"]) $(id).replaceChildren();
  for (const id of ["person-title", "person-note"]) text(id, "");
}

$("person-close").addEventListener("click", leave);

function draw(user) {
  const name = user.display_name || user.email;
  const facts = { Address: user.email, Id: code(user.id), Roles: user.roles.join(" ") || "none", State: standing(user), "Here since": until(user.created_at), "Wrong passwords": String(user.failures) };
  text("person-title", name);
  $("person-facts").replaceChildren(...Object.entries(facts).flatMap(([term, value]) => [make("dt", term), make("dd")].map((element, at) => (at && element.append(value), element))));
  $("person-deeds").replaceChildren(...deeds(user, name));
}

function deeds(user, name) {
  const one = `/admin/users/${encodeURIComponent(user.id)}`;
  const change = async (body) => {
    draw((await ask("PATCH", one, body)).user);
    $("person-title").focus();
  };
  const deed = (label, question, action, danger = false) => {
    const asked = { title: `${label}: ${name}`, yes: label, why: true, danger, ...question };
    const element = button(label, act("person-note", async () => {
      const given = await decide(asked);
      await whenFresh(() => action(given));
    }, () => (state.acting ? null : drawPeople())), name);
    if (danger) element.className = "danger";
    return element;
  };
  const ban = { label: "Until", type: "datetime-local", value: local(Date.now() + DAY) };
  const roles = { label: "Roles, separated by spaces", type: "text", value: user.roles.join(" ") };
  return [
    user.disabled
      ? deed("Enable", {}, ({ reason }) => change({ reason, disabled: false }))
      : deed("Disable", { words: "Every session ends, and none begins." }, ({ reason }) => change({ reason, disabled: true }), true),
    user.banned_until
      ? deed("Lift the ban", {}, ({ reason }) => change({ reason, banned_until: null }))
      : deed("Ban", { words: "Every session ends, and none begins before then.", field: ban }, ({ reason, more }) => change({ reason, banned_until: moment(more) }), true),
    deed("Change roles", { words: "Their live connections come back with the new rights.", field: roles }, ({ reason, more }) => change({ reason, roles: more.split(/\s+/).filter(Boolean) })),
    deed("Act for them", { words: "You see what they see, for a while. Everyone is shown that it is you." }, ({ reason }) => begin(user.id, reason)),
    deed("Export", { words: "All that is kept of them, as a file." }, ({ reason }) => keep(`${user.id}.json`, "POST", `${one}/export`, { reason })),
    deed("Remove lost factors", { words: "Every second factor goes, and their sessions end; a letter tells them. Make sure who asks." }, ({ reason }) => ask("DELETE", `${one}/factors`, { reason }), true),
    deed("Delete", { words: "Every session ends, and what is known of them goes. Nobody can bring it back." }, async ({ reason }) => {
      await ask("DELETE", one, { reason });
      leave();
      if (state.me) text("people-note", `${name} is deleted.`);
    }, true),
  ];
}

function moment(given) {
  const time = new Date(given);
  if (Number.isNaN(time.getTime())) throw new Error("Say until when, please.");
  return time.toISOString();
}
