// Says below a new password, while it is typed, how strong it would be.

import { ask } from "/page/service.js";

const PAUSE = 500; // ms without a key

const rules = [...document.querySelectorAll("[data-min-length]")];
let timer = 0;

/** What every rule says before anything is typed. */
export function sayRules(shortest) {
  for (const rule of rules) rule.textContent = rule.dataset.rule = `At least ${shortest} characters; a sentence is fine.`;
}

async function judge(rule, form, password) {
  const { email, display_name: name } = form.elements;
  const body = { password: password.value, email: email?.value.trim() ?? "", display_name: name?.value.trim() ?? "" };
  const said = await ask("POST", "/auth/password/strength", body).catch(() => null); // it is a hint, and no more
  if (said && password.value === body.password) rule.textContent = `${rule.dataset.rule} This one is ${said.strength}${said.why && `: ${said.why}`}.`;
}

for (const rule of rules) {
  rule.setAttribute("aria-live", "polite");
  const form = rule.closest("form");
  form.addEventListener("reset", () => (rule.textContent = rule.dataset.rule ?? ""));
  form.addEventListener("input", ({ target }) => {
    if (target.getAttribute("aria-describedby") !== rule.id) return;
    clearTimeout(timer);
    rule.textContent = rule.dataset.rule;
    if (target.value) timer = setTimeout(judge, PAUSE, rule, form, target);
  });
}
