// The service over HTTP, and who is logged in on this page.

export const state = { me: null, acting: null }; // `acting`: the session in which an admin acts for `me`, by a token

export class Refused extends Error {
  constructor(status, problem, wait = 0) {
    const fields = (problem.errors ?? []).map((e) => `${e.field}: ${e.message}`).join("; ");
    const words = [problem.title, fields || problem.detail].filter(Boolean).join(": ") || `The service answered ${status}`;
    super(status === 429 && wait ? `${words}. Again in ${wait} s` : words);
    this.status = status;
    this.code = problem.code;
    this.reason = problem.reason;
    this.challenge = problem.challenge; // what a login goes on with, by one of `factors`
    this.factors = problem.factors ?? [];
  }
}

export async function ask(method, path, body) {
  const text = await (await send(method, path, body)).text();
  return text ? JSON.parse(text) : {};
}

/** Have the browser keep an answer as a file. */
export async function keep(name, method, path, body) {
  const url = URL.createObjectURL(await (await send(method, path, body)).blob());
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after this
}

async function send(method, path, body) {
  const token = await bearer();
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { method, credentials: "same-origin", headers, body: body && JSON.stringify(body) }).catch(() => {
    throw new Error("The service cannot be reached");
  });
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})), Number(response.headers.get("Retry-After")));
  return response;
}

// --- acting for somebody: the cookie stays the admin's own, and a token goes before it ---

const EARLY = 30_000; // a token that is about to expire is renewed
let renewal = null; // one at a time: a refresh token is good once

/** The token of the session in which an admin acts; "" when nobody does. */
export async function bearer() {
  if (!state.acting) return "";
  if (state.acting.until < Date.now() + EARLY) await (renewal ??= renew(state.acting).finally(() => (renewal = null)));
  return state.acting?.token ?? "";
}

/** Where that is refused the token stays as it is: whoever is shown it says what is over, and why. */
async function renew(acting) {
  const response = await fetch("/auth/refresh", {
    method: "POST",
    credentials: "omit",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ refresh_token: acting.refresh }),
  }).catch(() => null);
  if (response?.ok) hold(acting, await response.json());
}

/** Keep the tokens of an answer. */
export function hold(acting, { access_token: token, refresh_token: refresh, expires_in: seconds }) {
  Object.assign(acting, { token, refresh, until: Date.now() + seconds * 1000 });
}
