// What the links in letters bring back: `#verify=`, `#reset=` and `#email=`, each with a token that is good once.

import { $, onSubmit, text } from "/page/dom.js";
import { ask } from "/page/service.js";

const FORMS = ["verify", "reset"]; // what these links ask for
let held = ""; // the token of a link whose form is open

/** The link that this page was opened with, or null. It leaves the address bar at once: the token is as good as a password. */
export function take() {
  const [, kind, token] = location.hash.match(/^#(verify|reset|email)=(.+)$/) ?? [];
  if (!kind) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return { kind, token };
}

export async function follow({ kind, token }) {
  for (const form of FORMS) $(form).hidden = form !== kind;
  try {
    say(...(await ANSWERS[kind](token)));
  } catch (error) {
    say("This did not work", error.message);
  }
  if (FORMS.includes(kind)) $(kind).elements[0].focus();
}

const ANSWERS = {
  async verify(token) {
    held = token;
    return ["Confirm your address", "With the password that you registered with. If it was not you, close this page."];
  },
  async reset(token) {
    held = token;
    return ["Set a new password", "Every session of your account ends with it."];
  },
  async email(token) {
    const { changed } = await ask("POST", "/auth/email/confirm", { token });
    if (changed) return ["Your address has changed", "From now on, log in with the new one."];
    return ["One of two mailboxes has confirmed", "Your address changes when the other one has confirmed, too: open the link in the letter there."];
  },
};

function say(title, words) {
  text("letter-title", title);
  text("letter-text", words);
  $("letter").hidden = false;
  $("letter-title").focus();
}

onSubmit("verify", "letter-text", "verify-error", async ({ password }) => {
  await ask("POST", "/auth/verify-email", { token: held, password: password.value });
  held = password.value = "";
  $("verify").hidden = true;
  say("Your address is confirmed", "");
  return "Your account is there. Log in with your address and your password.";
});

onSubmit("reset", "letter-text", "reset-error", async ({ new_password: password }) => {
  await ask("POST", "/auth/password/reset", { token: held, new_password: password.value });
  held = password.value = "";
  $("reset").hidden = true;
  say("Your new password is set", "");
  return "Every session of your account was ended. Log in with the new password.";
});

$("letter-close").addEventListener("click", () => {
  $("letter").hidden = true;
  $("main").focus();
});
