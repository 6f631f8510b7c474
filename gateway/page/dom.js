// The few things that every part of the page draws with.

import { ask, state } from "/page/service.js";

export const $ = (id) => document.getElementById(id);

export function text(id, value) {
  $(id).textContent = value;
}

export const make = (tag, words = "", more = {}) => Object.assign(document.createElement(tag), { textContent: words, ...more });

export const code = (words) => make("code", words);

export function cell(row, ...content) {
  const td = row.insertCell();
  td.append(...content);
  return td;
}

/** `about` tells a screen reader which of many rows this button is for. */
export function button(label, action, about = "") {
  const element = make("button", label, { type: "button" });
  if (about) element.setAttribute("aria-label", `${label}: ${about}`);
  element.addEventListener("click", action);
  return element;
}

export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

export const ago = (time) => {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return new Date(time).toLocaleString();
};

/** A time as a field for local times has it. */
export const local = (time) => new Date(time - new Date(time).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);

/** Have `action` done when the form is sent, once at a time; what it says or fails with stands below the form. */
export function onSubmit(form, noteId, errorId, action) {
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    const submit = event.submitter ?? event.target.querySelector("[type=submit]");
    submit.disabled = true;
    text(noteId, "");
    text(errorId, "");
    try {
      text(noteId, (await action(event.target.elements)) ?? "");
    } catch (error) {
      text(errorId, error.message);
    } finally {
      submit.disabled = false;
    }
  });
}

/** What a button does: `action`, then draw anew with `after`; in `where` stands how it went. */
export function act(where, action, after) {
  return async () => {
    try {
      await action();
      if (state.me) await after?.();
      if (state.me) text(where, "Done.");
    } catch (error) {
      if (state.me) text(where, error.message);
    }
    if (document.activeElement === document.body) stayNear($(where)); // the button was drawn anew
  };
}

/** Put the focus on the heading above, for who goes by the keyboard. */
function stayNear(element) {
  const heading = element.closest("section, aside")?.querySelector("h2, h3");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}

/** `path` with what the form `id` asks for; what is empty is not asked. */
export function filtered(path, id) {
  const query = new URLSearchParams({ limit: 20 });
  for (const field of $(id).elements) if (field.name && field.value.trim()) query.set(field.name, field.value.trim());
  return `${path}?${query}`;
}

/** A table in pages: what is returned draws the first anew, and the button `more` the next one below it. */
export function pages({ rows, more, note, none, path, draw }) {
  let next = "";
  let turn = 0;
  const page = async (after) => {
    const mine = ++turn;
    $(more).hidden = true; // nothing follows on what is about to go
    const answer = await ask("GET", `${path()}&after=${encodeURIComponent(after)}`);
    if (!state.me || mine !== turn) return;
    if (!after) $(rows).replaceChildren();
    for (const item of answer.items) draw($(rows).insertRow(), item);
    next = answer.next;
    $(more).hidden = !next;
    $(none).hidden = $(rows).children.length > 0;
  };
  $(more).addEventListener("click", act(note, () => page(next)));
  return () => page("");
}
