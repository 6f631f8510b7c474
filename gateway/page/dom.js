// The few things that every part of the page draws with.

import { state } from "/page/service.js";

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
      text(where, "Done.");
    } catch (error) {
      if (state.me) text(where, error.message);
    }
  };
}
