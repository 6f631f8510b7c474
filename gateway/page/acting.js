// An admin acts for somebody: the way in, the banner that says so all the while, and the way back.

import { $, act, text } from "/page/dom.js";
import { ask, hold, state } from "/page/service.js";

export const acting = new EventTarget(); // "begun" has the session as `detail`

/** Act for a user from now on, on this page. */
export async function begin(user, reason) {
  const answer = await ask("POST", `/admin/users/${encodeURIComponent(user)}/impersonation`, { reason });
  const as = state.me.user;
  state.acting = {};
  hold(state.acting, answer);
  text("acting-whom", answer.user.display_name || answer.user.email);
  text("acting-more", `You are ${as.display_name || as.email}; what you do is recorded under your name. It ends by itself at ${new Date(answer.session.expires_at).toLocaleTimeString()}. Reason: ${reason}.`);
  text("acting-note", "");
  $("acting").hidden = false;
  acting.dispatchEvent(new CustomEvent("begun", { detail: answer }));
  scrollTo(0, 0);
  $("acting-title").focus();
}

/** Whether somebody acted until now; the page is the admin's own again. */
export function stop() {
  const did = Boolean(state.acting);
  state.acting = null;
  $("acting").hidden = true;
  return did;
}

$("acting-end").addEventListener("click", act("acting-note", async () => {
  await ask("POST", "/auth/logout", {}).catch((error) => {
    if (error.status !== 401) throw error; // it is over already
  });
  acting.dispatchEvent(new Event("over"));
}));
