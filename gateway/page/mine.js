// What a person may do with what is kept of them: another name or picture, all of it as a file, and its end.

import { decide } from "/page/dialogs.js";
import { $, onSubmit } from "/page/dom.js";
import { whenFresh } from "/page/factors.js";
import { ask, keep, state } from "/page/service.js";

/** Fill the forms with what there is of who is logged in. */
export function drawMine() {
  const { user } = state.me;
  const { display_name: name, avatar_url: picture } = $("change-profile").elements;
  name.value = user.display_name;
  picture.value = user.avatar_url ?? "";
  $("erase").reset();
  $("erase-password").hidden = !user.email;
}

export function clearMine() {
  for (const id of ["change-profile", "erase"]) $(id).reset();
}

onSubmit("change-profile", "self-note", "self-error", async ({ display_name: name, avatar_url: picture }) => {
  state.me.user = await ask("PATCH", "/auth/me", { display_name: name.value.trim(), avatar_url: picture.value.trim() });
  drawMine();
  document.dispatchEvent(new Event("renamed"));
  return "That is how others see you from now on.";
});

onSubmit("export", "self-note", "self-error", async () => {
  await whenFresh(() => keep("my-data.json", "GET", "/auth/me/export"));
  return "Your browser has the file.";
});

onSubmit("erase", "self-note", "self-error", async ({ password }) => {
  await decide({
    title: "Delete your account?",
    words: "Every session of it ends, and what is known of you goes. Nobody can bring it back.",
    yes: "Delete it for good",
    danger: true,
  });
  await whenFresh(() => ask("DELETE", "/auth/me", password.value ? { password: password.value } : {}));
  document.dispatchEvent(new Event("erased")); // where the socket is away, nothing else says it
});
