// Second factors: passkeys, an authenticator app, recovery codes, and showing a factor again where that is asked for.

import { $, ago, button, cell, count, make, onSubmit, text } from "/page/dom.js";
import { ask, state } from "/page/service.js";

const able = Boolean(globalThis.PublicKeyCredential?.parseRequestOptionsFromJSON);
const byAddress = /^[\d.]+$|^\[/.test(location.hostname); // browsers make passkeys for domains alone
const home = location.origin.replace(location.hostname, "localhost");

let mine = null; // what I have, as the service says
let pending = null; // what waits for a factor to be shown again: `go`, or `leave`

// --- the browser's part ---

const WHY = {
  NotAllowedError: "Nothing was done: it was cancelled, took too long, or no passkey of yours is here.",
  InvalidStateError: "This device has a passkey of your account already.",
  SecurityError: `Passkeys belong to a domain, and not to this one: open ${home}/.`,
};

async function inBrowser(ceremony) {
  try {
    return (await ceremony()).toJSON();
  } catch (error) {
    throw new Error(WHY[error.name] ?? error.message);
  }
}

const create = (options) =>
  inBrowser(() => navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) }));

const get = (options) =>
  inBrowser(() => navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) }));

// --- logging in ---

/** Whether a passkey can be used on this page at all. */
export const passkeys = able && !byAddress;

/** A session, by a passkey alone. */
export async function logIn(remember) {
  const credential = await get(await ask("POST", "/auth/passkeys/login/options", {}));
  return ask("POST", "/auth/passkeys/login", { credential, remember });
}

/** A session, by the second half of a login: a code, or a passkey where there is none. `how`: what else it asks for. */
export async function finish(challenge, code, how) {
  if (code) return ask("POST", "/auth/login/factor", { ...how, challenge, code });
  const passkey = await get(await ask("POST", "/auth/login/factor/options", { challenge }));
  return ask("POST", "/auth/login/factor", { ...how, challenge, passkey });
}

// --- what I have ---

/** Leave nothing of it on the page for whoever comes next. */
export function clearFactors() {
  pending?.leave();
  mine = pending = null;
  hideCodes();
  for (const id of ["passkeys", "totp-qr"]) $(id).replaceChildren();
  for (const id of ["totp-secret", "factors-note", "factors-error"]) text(id, "");
  for (const id of ["factors", "totp-confirm", "totp-remove"]) $(id).hidden = true;
  for (const id of ["totp-confirm", "totp-remove", "passkey-new"]) $(id).reset();
  $("step-up").close();
}

export async function drawFactors() {
  $("factors").hidden = !state.me.user.email || Boolean(state.acting);
  if ($("factors").hidden) return;
  const [has, { items }] = await Promise.all([ask("GET", "/auth/factors"), ask("GET", "/auth/passkeys")]);
  mine = has;
  const second = has.totp || has.passkeys > 0;
  text("factors-state", second ? "Logging in takes your password and a second factor, or a passkey alone." : "Your password alone logs you in. A passkey or an app makes that safer.");
  drawPasskeys(items);
  $("totp-off").hidden = has.totp;
  $("totp-confirm").hidden = true;
  $("totp-remove").hidden = !has.totp;
  $("recovery-left").hidden = !second;
  text("recovery-count", `${count(has.recovery_codes, "code")} left.`);
}

function drawPasskeys(items) {
  $("passkeys").replaceChildren();
  $("passkeys-none").hidden = items.length > 0;
  $("passkeys-table").hidden = !items.length;
  for (const passkey of items) {
    const row = $("passkeys").insertRow();
    const name = make("input", "", { value: passkey.name, maxLength: 64 });
    name.setAttribute("aria-label", `Name of ${passkey.name}`);
    const path = `/auth/passkeys/${passkey.id}`;
    cell(row, name);
    cell(row, ago(passkey.created_at));
    cell(row, passkey.last_used_at ? ago(passkey.last_used_at) : "never");
    cell(
      row,
      button("Rename", () => deed(() => ask("PATCH", path, { name: name.value.trim() }), "Renamed."), passkey.name),
      " ",
      button("Remove", () => deed(() => ask("DELETE", path), "The passkey is removed."), passkey.name),
    );
  }
}

// --- deeds, and the factor that they may want first ---

/** What `action` gives; where a factor has to be shown again, that is asked for, and `action` done then. */
export async function whenFresh(action) {
  try {
    return await action();
  } catch (error) {
    if (error.code !== "step_up_required") throw error;
    return new Promise((go, leave) => askAgain(() => go(action()), () => leave(new Error("Nothing was done."))));
  }
}

/** Do it, draw anew and say that it is done. A function that `action` returns draws what comes on top. */
async function deed(action, done) {
  text("factors-note", "");
  text("factors-error", "");
  try {
    const more = await whenFresh(action);
    if (!state.me) return;
    await drawFactors();
    if (typeof more === "function") more();
    text("factors-note", done);
  } catch (error) {
    if (state.me) text("factors-error", error.message);
  }
}

function askAgain(go, leave) {
  const second = mine.totp || mine.passkeys > 0;
  pending?.leave();
  pending = { go, leave };
  text("step-up-error", "");
  text("step-up-text", second ? "It is a while ago that you showed a second factor. Show one again, and it goes on." : "It is a while ago that you gave your password. Give it again, and it goes on.");
  $("step-up-form").reset();
  $("step-up-password").hidden = second;
  $("step-up-code").hidden = !second;
  $("step-up-passkey").hidden = !(mine.passkeys > 0 && passkeys);
  $("step-up").showModal();
  $("step-up-title").focus();
}

async function steppedUp(body) {
  await ask("POST", "/auth/step-up", body);
  const waits = pending;
  pending = null;
  $("step-up").close();
  waits?.go();
}

onSubmit("step-up-form", "factors-note", "step-up-error", async ({ password, code }) => {
  await steppedUp(code.value.trim() ? { code: code.value.trim() } : { password: password.value });
});

$("step-up-passkey").addEventListener("click", async () => {
  text("step-up-error", "");
  try {
    await steppedUp({ passkey: await get(await ask("POST", "/auth/step-up/options", {})) });
  } catch (error) {
    text("step-up-error", error.message);
  }
});

$("step-up-not").addEventListener("click", () => $("step-up").close());
$("step-up").addEventListener("close", () => {
  const waits = pending;
  pending = null;
  $("step-up-form").reset();
  waits?.leave();
});

$("passkey-new").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = event.target.elements.name.value.trim();
  deed(async () => {
    const credential = await create(await ask("POST", "/auth/passkeys/options", {}));
    showCodes((await ask("POST", "/auth/passkeys", { name, credential })).recovery_codes);
  }, "The passkey is added.");
});

// --- the app ---

$("totp-begin").addEventListener("click", () =>
  deed(async () => {
    const { secret, qr } = await ask("POST", "/auth/totp", {});
    return () => showSecret(secret, qr);
  }, "One step more: the code that your app shows."),
);

function showSecret(secret, qr) {
  const image = document.importNode(new DOMParser().parseFromString(qr, "image/svg+xml").documentElement, true);
  image.setAttribute("role", "img");
  image.setAttribute("aria-label", "QR code of the secret below");
  $("totp-qr").replaceChildren(image);
  text("totp-secret", secret);
  $("totp-off").hidden = true;
  $("totp-confirm").reset();
  $("totp-confirm").hidden = false;
  $("totp-confirm").elements.code.focus();
}

/** A form with a code: `action` takes it. */
function onCode(form, action, done) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    const code = event.target.elements.code.value.trim();
    deed(async () => {
      await action(code);
      event.target.reset();
      $("totp-qr").replaceChildren();
      text("totp-secret", "");
    }, done);
  });
}

onCode("totp-confirm", async (code) => showCodes((await ask("POST", "/auth/totp/confirm", { code })).recovery_codes), "The app is on.");
onCode("totp-remove", (code) => ask("DELETE", "/auth/totp", { code }), "The app is off.");

// --- recovery codes ---

function showCodes(codes) {
  if (!codes.length) return;
  $("recovery-codes").replaceChildren(...codes.map((one) => make("li", one)));
  $("recovery").hidden = false;
  $("recovery-title").focus();
}

function hideCodes() {
  $("recovery-codes").replaceChildren();
  $("recovery").hidden = true;
}

$("recovery-kept").addEventListener("click", () => {
  hideCodes();
  $("recovery-new").focus();
});

$("recovery-new").addEventListener("click", () =>
  deed(async () => {
    showCodes((await ask("POST", "/auth/recovery-codes", {})).recovery_codes);
  }, "Those that you had before are not good any more."),
);

// --- start ---

$("passkey-new").hidden = !passkeys;
$("passkeys-elsewhere").hidden = passkeys;
if (byAddress) $("passkeys-elsewhere").append("Browsers make passkeys for names, not for addresses: open ", make("a", `${home}/`, { href: `${home}/` }), " instead.");
else if (!able) text("passkeys-elsewhere", "This browser is too old for passkeys.");
