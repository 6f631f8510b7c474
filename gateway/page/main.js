// The demo page: coming in and going out, the room, and what is mine. What admins see is in admin.js.

import { acting, stop } from "/page/acting.js";
import { clearAdmin, drawAdmin } from "/page/admin.js";
import { closeDialogs } from "/page/dialogs.js";
import { $, act, ago, button, cell, make, onSubmit, text } from "/page/dom.js";
import { clearFactors, drawFactors, finish, logIn, passkeys, whenFresh } from "/page/factors.js";
import { follow, take } from "/page/links.js";
import { clearMine, drawMine } from "/page/mine.js";
import { liveSessions } from "/page/revoke.js";
import { ask, bearer, state } from "/page/service.js";
import { sayRules } from "/page/strength.js";
import { Connection } from "/page/wire.js";

const ROOM = "chat:lobby";
const COUNTED = 1_500; // counts of connections may be a second old
const DAY = 86_400;
const connection = new Connection(location.origin.replace("http", "ws") + "/connection/websocket", bearer);
const present = new Map(); // client -> user, and whether an admin acts for them
const names = new Map(); // user -> the name under which that user spoke; nobody else's e-mail address is known here
const opened = take();
const doors = await ask("GET", "/dev/doors");

// --- which part of the page is shown ---

function show(part) {
  for (const id of ["ended", "door", "rooms"]) $(id).hidden = id !== part;
  $("account").hidden = part !== "rooms";
}

// --- coming in and going out ---

/** Nobody is logged in; whoever comes next finds nothing of who went. */
function forget() {
  state.me = null;
  closeDialogs();
  clearAdmin();
  clearFactors();
  clearMine();
  for (const id of ["messages", "present", "sessions"]) $(id).replaceChildren();
  text("who", "");
}

function doorway(message = "") {
  connection.close();
  forget();
  text("door-error", message);
  text("door-note", "");
  $("door-form").reset();
  doorFor("login");
  firstHalf();
  show("door");
  $("door-form").elements.email.focus();
}

async function enter(session) {
  welcome(session);
  connection.open();
  await Promise.all([refresh(), drawFactors(), isAdmin() ? drawAdmin(doors) : null]);
}

function welcome(session) {
  state.me = session;
  const { user } = session;
  named();
  $("upgrade").hidden = Boolean(user.email) || !doors.registration;
  $("profile").hidden = !user.email;
  $("credentials").hidden = !user.email || Boolean(state.acting);
  $("leaving").hidden = Boolean(state.acting);
  $("address").hidden = !doors.mail;
  for (const id of ["upgrade", "change-address", "change-password"]) $(id).reset();
  for (const id of ["self-note", "self-error", "sessions-note"]) text(id, "");
  drawMine();
  $("admin").hidden = !isAdmin();
  show("rooms");
}

function named() {
  const { user } = state.me;
  text("who", user.display_name || user.email || "Guest");
}

document.addEventListener("renamed", named);

const isAdmin = () => state.me.user.roles.includes("admin");

const LOOK = "Look into your mailbox: the link in the letter there opens your account.";
const HINT = doors.letters ? " This is development: an admin reads the letters on this page." : "";

sayRules(doors.password_min_length);
$("way-register").hidden = !doors.registration;
$("guest").hidden = !doors.guests;

function doorFor(way) {
  const registering = way === "register";
  $("door-form").elements.way.value = way;
  $("name-field").hidden = $("password-rule").hidden = !registering;
  $("remember-field").hidden = registering;
  $("forgot").hidden = registering || !doors.mail;
  $("resend").hidden = true;
  const { password } = $("door-form").elements;
  password.autocomplete = registering ? "new-password" : "current-password";
  if (registering) password.setAttribute("aria-describedby", "password-rule");
  else password.removeAttribute("aria-describedby");
}

$("door-form").addEventListener("change", ({ target }) => target.name === "way" && doorFor(target.value));

/** Register, as a stranger or as the guest who one is; the session, or null when the rest comes by letter. */
async function register({ email, password, display_name: name }) {
  const body = { email: email.value.trim(), password: password.value };
  if (name.value.trim()) body.display_name = name.value.trim();
  const session = await ask("POST", "/auth/register", body);
  password.value = "";
  return session.user ? session : null;
}

onSubmit("door-form", "door-note", "door-error", async (fields) => {
  if (fields.way.value === "login") {
    await logInWith({ email: fields.email.value.trim(), password: fields.password.value, remember: fields.remember.checked });
    fields.password.value = "";
    return "";
  }
  const session = await register(fields);
  if (session) await enter(session);
  $("resend").hidden = Boolean(session);
  return session ? "" : LOOK + HINT;
});

// --- a second factor after the password ---

let challenge = ""; // of a login whose password was right

async function logInWith(credentials) {
  try {
    await enter(await ask("POST", "/auth/login", credentials));
  } catch (error) {
    if (error.code !== "second_factor_required") throw error;
    secondHalf(error);
  }
}

function secondHalf(asked) {
  challenge = asked.challenge;
  $("second-passkey").hidden = !(passkeys && asked.factors.includes("passkey"));
  $("trust-field").hidden = !doors.trust_device_for;
  text("second-error", "");
  for (const id of ["door-form", "door-ways"]) $(id).hidden = true;
  $("second").hidden = false;
  $("second").elements.code.focus();
}

function firstHalf() {
  challenge = "";
  $("second").reset();
  $("second").hidden = true;
  for (const id of ["door-form", "door-ways"]) $(id).hidden = false;
}

async function finished(code) {
  try {
    const how = { remember: $("door-form").elements.remember.checked, trust_device: $("second").elements.trust.checked };
    const session = await finish(challenge, code, how);
    firstHalf();
    await enter(session);
  } catch (error) {
    if (error.code !== "unauthenticated") throw error;
    doorway("That took too long: log in again."); // the challenge is over
  }
}

onSubmit("second", "door-note", "second-error", async ({ code }) => {
  if (!code.value.trim()) throw new Error("The code, please.");
  await finished(code.value.trim());
});

$("second-passkey").addEventListener("click", () => finished().catch((error) => text("second-error", error.message)));
$("second-back").addEventListener("click", () => doorway());
$("passkey-login").hidden = !passkeys;
text("trust-for", `${Math.round(doors.trust_device_for / DAY)} days`);

/** A button at the door: what it does, and says. */
function atTheDoor(id, action) {
  $(id).addEventListener("click", async () => {
    text("door-note", "");
    text("door-error", "");
    try {
      text("door-note", (await action($("door-form").elements.email)) ?? "");
    } catch (error) {
      text("door-error", error.message);
    }
  });
}

const letterFor = (path) => async (email) => {
  if (!email.value.trim()) {
    email.focus();
    throw new Error("Your e-mail address first, please.");
  }
  await ask("POST", path, { email: email.value.trim() });
  return `If ${email.value.trim()} is known here, a letter is on its way to it.${HINT}`;
};

atTheDoor("forgot", letterFor("/auth/password/forgot"));
atTheDoor("resend", letterFor("/auth/verify-email/resend"));
atTheDoor("passkey-login", async () => enter(await logIn($("door-form").elements.remember.checked)));
atTheDoor("guest", async () => enter(await ask("POST", "/auth/guest", {})));

$("logout").addEventListener("click", async () => {
  try {
    await ask("POST", "/auth/logout", {});
  } catch (error) {
    if (error.status !== 401) throw error;
  }
});

$("ended-again").addEventListener("click", () => doorway());

const WHY = {
  "session revoked": "This session was ended.",
  "account disabled": "This account is disabled.",
  "session replaced": "A newer session took the place of this one: you registered as the guest you were, or logged in on too many devices.",
  "session expired": "This session was over: log in again.",
};
const REASONS = {
  logout: "You logged out.",
  ended_by_user: "You ended this session from another device.",
  password_changed: "The password was changed.",
  token_reuse: "A token of this session was used twice, as a thief would.",
  account_deleted: "This account was deleted, and what was known of you is gone.",
};

function ended({ reason = "", message, at, code }) {
  const [kind, detail] = reason.split(/: (.*)/s);
  forget();
  text("ended-why", REASONS[detail] ?? [WHY[kind] ?? "The connection was refused.", detail && `Reason: ${detail}.`].filter(Boolean).join(" "));
  text("ended-message", message ?? "");
  $("ended-message").hidden = !message;
  text("ended-when", `${new Date(at ?? Date.now()).toLocaleTimeString()} · code ${code}`);
  show("ended");
  $("ended-title").focus();
}

// --- the connection ---

connection.addEventListener("state", ({ detail }) => {
  $("link").dataset.state = detail;
  text("link", { on: "connected", wait: "connecting", off: "not connected" }[detail]);
});

connection.addEventListener("ended", ({ detail }) => (state.acting ? back() : ended(fromClose(detail))));
document.addEventListener("erased", () => {
  if (!state.me) return;
  connection.close();
  ended({ reason: "account disabled: account_deleted", code: 4502 });
});

// --- acting for somebody, and being oneself again ---

acting.addEventListener("begun", ({ detail: session }) => {
  connection.close();
  forget();
  enter(session).catch((error) => text("acting-note", error.message));
});

acting.addEventListener("over", back);

async function back() {
  if (!stop()) return;
  connection.close();
  forget();
  await resume();
}

function fromClose(detail) {
  // The message push says the same as the close reason and has a text for people; some clients get only the latter.
  const reason = detail.type ? closeText(detail) : detail.reason;
  return { ...detail, reason };
}

function closeText({ type, reason }) {
  const kind = { "session.revoked": "session revoked", "account.disabled": "account disabled", "session.replaced": "session replaced", "session.expired": "session expired" }[type];
  return reason ? `${kind}: ${reason}` : kind;
}

connection.addEventListener("connected", async () => {
  $("messages").replaceChildren();
  try {
    const { publications = [] } = await connection.call("subscribe", { channel: ROOM });
    const history = publications.length ? { publications } : await connection.call("history", { channel: ROOM, limit: 50 });
    history.publications.forEach(said);
    const { presence } = await connection.call("presence", { channel: ROOM });
    present.clear();
    for (const info of Object.values(presence)) present.set(info.client, seen(info));
    drawPresent();
    if (state.me?.user.display_name && !names.has(state.me.user.id)) await say({ here: true });
    setTimeout(() => state.me && refresh().catch(() => {}), COUNTED); // a session that ended meanwhile is told by its socket
  } catch (error) {
    note(`The room cannot be entered: ${error.message}`);
  }
});

connection.addEventListener("push", ({ detail: push }) => {
  if (push.channel !== ROOM) return;
  if (push.pub) said(push.pub);
  if (push.join) arrived(push.join.info, true);
  if (push.leave) arrived(push.leave.info, false);
});

function line(author, words, kind = "") {
  const item = make("li", "", { className: kind });
  if (author) item.append(make("b", `${author}:`), " ");
  item.append(words);
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  list.append(item);
  while (list.children.length > 200) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

const note = (words) => line("", words, "note");

const say = (words) => connection.call("publish", { channel: ROOM, data: { ...words, from: state.me.user.display_name } });

function said({ data, info }) {
  const from = info?.user && data?.from;
  if (from && names.get(info.user) !== String(from)) {
    names.set(info.user, String(from));
    drawPresent();
  }
  const author = info?.user ? nameOf(info.user) : String(data?.from ?? "system");
  if (data?.here) note(`${author} came in.`);
  else line(author, String(data?.text ?? JSON.stringify(data)));
}

const nameOf = (user) => names.get(user) ?? (user ? `someone (${user.slice(-4)})` : "someone");

function arrived(info, here) {
  if (here) present.set(info.client, seen(info));
  else present.delete(info.client);
  drawPresent();
}

const seen = ({ user, conn_info: about }) => ({ user, acted: Boolean(about?.act) });

function drawPresent() {
  const all = [...present.values()];
  const users = [...new Set(all.map(({ user }) => user))].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  const acted = new Set(all.filter((one) => one.acted).map(({ user }) => user));
  const shown = (user) => (user === state.me?.user.id ? `${state.me.user.display_name || nameOf(user)} (you)` : nameOf(user));
  text("present-count", String(users.length));
  $("present").replaceChildren(...users.map((user) => make("li", shown(user) + (acted.has(user) ? " (an admin acts here)" : ""), { title: user })));
}

$("say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = event.target.elements.text;
  const words = input.value.trim();
  if (!words) return;
  text("say-error", "");
  try {
    await say({ text: words });
    input.value = "";
  } catch (error) {
    text("say-error", error.message);
  }
});

// --- sessions ---

async function refresh() {
  await Promise.all([mySessions(), isAdmin() ? liveSessions() : null]);
}

async function mySessions() {
  const { items } = await ask("GET", "/auth/sessions?limit=200");
  $("sessions").replaceChildren();
  for (const session of items) {
    const row = $("sessions").insertRow();
    const device = session.impersonated_by ? "an admin acts here" : session.device || "unknown device";
    cell(row, device);
    cell(row, session.address || "");
    cell(row, ago(session.last_seen_at));
    cell(row, String(session.connections ?? "?"));
    const about = `the session on ${device}, last seen ${ago(session.last_seen_at)}`;
    const end = act("sessions-note", () => ask("DELETE", `/auth/sessions/${session.sid}`), mySessions);
    cell(row, button(session.current ? "End (this one)" : "End", end, about));
  }
}

$("sessions-again").addEventListener("click", act("sessions-note", mySessions));
$("sessions-others").addEventListener("click", act("sessions-note", () => ask("DELETE", "/auth/sessions?scope=others"), mySessions));

// --- my account ---

onSubmit("upgrade", "self-note", "self-error", async (fields) => {
  connection.close(); // its session is about to be another one
  try {
    const session = await register(fields);
    if (session) {
      welcome(session);
      await drawFactors();
    }
    return session ? "You are registered, and still the same." : LOOK + HINT;
  } finally {
    if (state.me) {
      connection.open();
      await mySessions();
    }
  }
});

onSubmit("change-address", "self-note", "self-error", async ({ new_email: email, current_password: password }) => {
  await whenFresh(() => ask("POST", "/auth/email", { new_email: email.value.trim(), current_password: password.value }));
  $("change-address").reset();
  return `A letter went to your old and to your new mailbox: your address changes when both have confirmed.${HINT}`;
});

onSubmit("change-password", "self-note", "self-error", async ({ current_password: old, new_password: password }) => {
  await whenFresh(() => ask("POST", "/auth/password", { current_password: old.value, new_password: password.value }));
  $("change-password").reset();
  await mySessions();
  return "Your password is changed, and your other sessions are ended.";
});

// --- start ---

async function resume() {
  try {
    await enter(await ask("GET", "/auth/me"));
  } catch (error) {
    if (error.code === "session_ended") ended({ reason: `session revoked: ${error.reason ?? ""}`, code: 401 });
    else doorway(error.status === 401 ? "" : error.message);
  }
}

async function followed(found) {
  doorFor("login"); // that is what comes next
  await follow(found);
  if (state.me && found.kind === "email") welcome(await ask("GET", "/auth/me"));
}

await resume();
if (opened) await followed(opened);
addEventListener("hashchange", () => {
  const link = take();
  if (link) followed(link);
});
