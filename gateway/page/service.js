// The service over HTTP, and who is logged in on this page.

export const state = { me: null };

export class Refused extends Error {
  constructor(status, problem) {
    const fields = (problem.errors ?? []).map((e) => `${e.field}: ${e.message}`).join("; ");
    super([problem.title, fields || problem.detail].filter(Boolean).join(": ") || `Status ${status}`);
    this.status = status;
    this.code = problem.code;
    this.reason = problem.reason;
    this.challenge = problem.challenge; // what a login goes on with, by one of `factors`
    this.factors = problem.factors ?? [];
  }
}

export async function ask(method, path, body) {
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
