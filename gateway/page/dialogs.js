// Two questions that stand before everything else: whether something shall be done, and whether a secret was kept.

import { $, text } from "/page/dom.js";

let answer = null; // of the question that is open

/** Ask whether it shall be done: `yes` is what the button says. With `why` a reason is asked for, with `field` (its
 *  `label`, `type` and `value`) something more. What was given, or an Error for who leaves it. */
export function decide({ title, words = "", yes, why = false, field = null, danger = false }) {
  const { reason, more } = $("decide-form").elements;
  text("decide-title", title);
  text("decide-text", words);
  text("decide-error", "");
  text("decide-yes", yes);
  $("decide-yes").className = danger ? "danger" : "main";
  $("decide-form").reset();
  $("decide-more").hidden = !field;
  $("decide-why").hidden = !why;
  reason.required = why;
  text("decide-label", field?.label ?? "More");
  more.type = field?.type ?? "text";
  more.value = field?.value ?? "";
  $("decide").showModal();
  (field ? more : why ? reason : $("decide-yes")).focus();
  return new Promise((done, leave) => (answer = { done, leave }));
}

$("decide-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { reason, more } = event.target.elements;
  if (reason.required && !reason.value.trim()) {
    text("decide-error", "Say why, please.");
    reason.focus();
    return;
  }
  const given = { reason: reason.value.trim(), more: more.value.trim() };
  const { done } = answer;
  answer = null;
  $("decide").close();
  done(given);
});

$("decide-no").addEventListener("click", () => $("decide").close());
$("decide").addEventListener("close", () => {
  answer?.leave(new Error("Nothing was done."));
  answer = null;
});

/** Show a secret that nobody can show again. */
export function showSecret(words, secret) {
  text("secret-text", words);
  text("secret-value", secret);
  $("secret").showModal();
  $("secret-value").focus();
}

$("secret").addEventListener("cancel", (event) => event.preventDefault()); // by a slip of Escape it would be gone
$("secret").addEventListener("close", () => text("secret-value", ""));
$("secret-kept").addEventListener("click", () => $("secret").close());

/** Leave neither open for whoever comes next. */
export function closeDialogs() {
  for (const id of ["decide", "secret"]) $(id).close();
}
