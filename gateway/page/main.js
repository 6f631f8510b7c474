// The demo page: what is on screen, and what each button asks of the service.

import { Connection } from "/page/wire.js";

const $ = (id) => document.getElementById(id);
const ROOM = "chat:lobby";
const COUNTED = 1_500; // counts of connections may be a second old
const connection = new Connection(location.origin.replace("http", "ws") + "/connection/websocket");
const present = new Map(); // client -> user
const names = new Map(); // user -> the name under which that user spoke; nobody else's e-mail address is known here
let me = null;
let pending = null;

// --- the service over HTTP ---

class Refused extends Error {
  constructor(status, problem) {
    const fields = (problem.errors ?? []).map((e) => `${e.field}: ${e.message}`).join("; ");
    super([problem.title, fields || problem.detail].filter(Boolean).join(": ") || `Status ${status}`);
    this.status = status;
    this.code = problem.code;
    this.reason = problem.reason;
  }
}

async function ask(method, path, body) {
  const response = await fetch(path, {
    method,
    credentials: "same-origin",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
  });
  const text = await response.text();
  const data = text ? JSON.parse(text) : {};
  if (!response.ok) throw new Refused(response.status, data);
  return data;
}

// --- which part of the page is shown ---

function show(part) {
  for (const id of ["ended", "door", "rooms"]) $(id).hidden = id !== part;
  $("account").hidden = part !== "rooms";
}

function text(element, value) {
  $(element).textContent = value;
}

function cell(row, content) {
  const td = row.insertCell();
  td.append(content);
  return td;
}

function button(label, action, kind = "") {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.className = kind;
  element.addEventListener("click", action);
  return element;
}

const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

const ago = (time) => {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return new Date(time).toLocaleString();
};

// --- coming in and going out ---

function doorway(message = "") {
  connection.close();
  me = null;
  text("door-error", message);
  show("door");
  $("door-form").elements.email.focus();
}

async function enter(session) {
  me = session;
  text("who", me.user.display_name || me.user.email);
  $("admin").hidden = !me.user.roles.includes("admin");
  show("rooms");
  connection.open();
  await refresh();
}

$("door-form").addEventListener("change", ({ target }) => {
  if (target.name !== "way") return;
  const registering = target.value === "register";
  $("name-field").hidden = $("password-rule").hidden = !registering;
  const { password } = $("door-form").elements;
  password.autocomplete = registering ? "new-password" : "current-password";
  if (registering) password.setAttribute("aria-describedby", "password-rule");
  else password.removeAttribute("aria-describedby");
});

$("door-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { way, email, password, display_name: name } = event.target.elements;
  const submit = event.target.querySelector("button");
  submit.disabled = true;
  text("door-error", "");
  try {
    const body = { email: email.value.trim(), password: password.value };
    if (way.value === "register" && name.value.trim()) body.display_name = name.value.trim();
    const session = await ask("POST", `/auth/${way.value}`, body);
    password.value = "";
    await enter(session);
  } catch (error) {
    text("door-error", error.message);
  } finally {
    submit.disabled = false;
  }
});

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
  "session replaced": "You logged in on too many devices, and this was the oldest session.",
  "session expired": "This session was over: log in again.",
};
const REASONS = {
  logout: "You logged out.",
  ended_by_user: "You ended this session from another device.",
  password_changed: "The password was changed.",
  token_reuse: "A token of this session was used twice, as a thief would.",
};

function ended({ reason = "", message, at, code }) {
  const [kind, detail] = reason.split(/: (.*)/s);
  me = null;
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

connection.addEventListener("ended", ({ detail }) => ended(fromClose(detail)));

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
    for (const info of Object.values(presence)) present.set(info.client, info.user);
    drawPresent();
    if (me?.user.display_name && !names.has(me.user.id)) await say({ here: true });
    setTimeout(() => me && refresh(), COUNTED);
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
  const item = document.createElement("li");
  item.className = kind;
  if (author) {
    const name = document.createElement("b");
    name.textContent = `${author}:`;
    item.append(name, " ");
  }
  item.append(words);
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  list.append(item);
  while (list.children.length > 200) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

const note = (words) => line("", words, "note");

const say = (words) => connection.call("publish", { channel: ROOM, data: { ...words, from: me.user.display_name } });

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
  if (here) present.set(info.client, info.user);
  else present.delete(info.client);
  drawPresent();
}

function drawPresent() {
  const users = [...new Set(present.values())].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  text("present-count", String(users.length));
  const shown = (user) => (user === me?.user.id ? `${me.user.display_name || nameOf(user)} (you)` : nameOf(user));
  $("present").replaceChildren(...users.map((user) => Object.assign(document.createElement("li"), { textContent: shown(user), title: user })));
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
  await Promise.all([mySessions(), me.user.roles.includes("admin") ? liveSessions() : null]);
}

async function mySessions() {
  const { items } = await ask("GET", "/auth/sessions?limit=200");
  $("sessions").replaceChildren();
  for (const session of items) {
    const row = $("sessions").insertRow();
    cell(row, session.device || "unknown device");
    cell(row, session.address || "");
    cell(row, ago(session.last_seen_at));
    cell(row, String(session.connections));
    const end = button(session.current ? "End (this one)" : "End", () => act("sessions-note", () => ask("DELETE", `/auth/sessions/${session.sid}`), mySessions));
    end.setAttribute("aria-label", `End the session on ${session.device || "unknown device"}, last seen ${ago(session.last_seen_at)}`);
    cell(row, end);
  }
}

async function act(where, action, after) {
  try {
    await action();
    if (me) await after?.();
    text(where, "Done.");
  } catch (error) {
    if (me) text(where, error.message);
  }
}

$("sessions-again").addEventListener("click", () => act("sessions-note", mySessions));
$("sessions-others").addEventListener("click", () => act("sessions-note", () => ask("DELETE", "/auth/sessions?scope=others"), mySessions));

// --- admin ---

async function liveSessions() {
  const { items } = await ask("GET", "/admin/sessions?limit=100");
  $("live").replaceChildren();
  $("known").replaceChildren(...items.map((s) => Object.assign(document.createElement("option"), { value: s.sid })));
  for (const session of items) {
    const row = $("live").insertRow();
    cell(row, session.user ? Object.assign(document.createElement("code"), { textContent: session.user }) : session.kind);
    cell(row, Object.assign(document.createElement("code"), { textContent: session.sid }));
    cell(row, session.device || "");
    cell(row, String(session.connections));
    cell(row, button("Choose", () => choose(session.sid)));
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
$("live-again").addEventListener("click", () => act("revoke-error", liveSessions));

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
    if (me) text("revoke-error", error.message);
  }
});

async function follow(receipt) {
  for (let round = 0; round < 60 && me; round++) {
    drawReceipt(receipt);
    if (receipt.state === "confirmed" && round > 2) break;
    await new Promise((resolve) => setTimeout(resolve, 250));
    receipt = await ask("GET", `/admin/revocations/${receipt.id}`);
  }
  if (me) await liveSessions();
}

function drawReceipt(receipt) {
  $("receipt").hidden = false;
  text("receipt-id", receipt.id);
  text("receipt-state", receipt.state === "confirmed" ? `Confirmed by ${receipt.by === "acks" ? "every node" : "the lease"} in ${receipt.elapsed_ms} ms.` : "Committed, waiting for the nodes.");
  const facts = { Sessions: receipt.sessions, "Connections closed": receipt.connections_closed, Position: receipt.position };
  $("receipt-facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: String(value) }),
    ]),
  );
  $("receipt-nodes").replaceChildren();
  for (const node of receipt.nodes) {
    const row = $("receipt-nodes").insertRow();
    cell(row, Object.assign(document.createElement("code"), { textContent: node.node }));
    cell(row, node.applied_at ? new Date(node.applied_at).toLocaleTimeString() : "");
    cell(row, String(node.connections_closed));
  }
}

// --- start ---

try {
  await enter(await ask("GET", "/auth/me"));
} catch (error) {
  if (error.code === "session_ended") ended({ reason: `session revoked: ${error.reason ?? ""}`, code: 401 });
  else doorway(error.status === 401 ? "" : error.message);
}
