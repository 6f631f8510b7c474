// A small client of the Centrifuge protocol in JSON over one WebSocket, authenticated by the session cookie, or a token.
// It shows what is on the wire; an application would use the published SDK.

const STALE = 40_000; // no ping for so long: the line is dead

export class Connection extends EventTarget {
  #socket = null;
  #next = 1;
  #waiting = new Map();
  #attempt = 0;
  #timer = 0;
  #alarm = 0;
  #lastMessage = null;

  /** `token` gives the token for each connect; "" leaves it to the cookie. */
  constructor(url, token) {
    super();
    this.url = url;
    this.token = token;
  }

  open() {
    this.#say("state", "wait");
    const socket = (this.#socket = new WebSocket(this.url));
    const mine = (act) => (event) => socket === this.#socket && act(event); // one that was closed has no say any more
    socket.onopen = mine(() => this.#start(socket));
    socket.onmessage = mine((event) => this.#heard(String(event.data)));
    socket.onclose = mine((event) => this.#lost(event));
  }

  close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
    this.#forget();
  }

  call(method, params) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new Error("not connected"));
        return;
      }
      this.#waiting.set(id, { resolve, reject, method });
      this.#socket.send(JSON.stringify({ id, [method]: params }));
    });
  }

  async #start(socket) {
    try {
      const token = await this.token();
      if (socket !== this.#socket) return;
      const connected = await this.call("connect", token ? { token } : {});
      this.#attempt = 0;
      this.#say("state", "on");
      this.#say("connected", connected);
    } catch {
      socket.close(1000);
    }
  }

  #heard(text) {
    clearTimeout(this.#alarm);
    this.#alarm = setTimeout(() => this.#socket?.close(1000), STALE);
    for (const line of text.split("\n")) {
      const message = JSON.parse(line);
      if (message.id) this.#answered(message);
      else if (message.push) this.#pushed(message.push);
      else this.#socket.send("{}");
    }
  }

  #answered(reply) {
    const { resolve, reject, method } = this.#waiting.get(reply.id) ?? {};
    this.#waiting.delete(reply.id);
    if (!resolve) return;
    if (reply.error) reject(Object.assign(new Error(reply.error.message), { code: reply.error.code }));
    else resolve(reply[method] ?? {});
  }

  #pushed(push) {
    if (push.message) this.#lastMessage = push.message.data;
    this.#say("push", push);
  }

  #forget() {
    clearTimeout(this.#alarm);
    for (const { reject } of this.#waiting.values()) reject(new Error("connection closed"));
    this.#waiting.clear();
    this.#say("state", "off");
  }

  #lost({ code, reason }) {
    this.#forget();
    const final = (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
    if (final) this.#say("ended", { code, reason, ...this.#lastMessage });
    else this.#again();
    this.#lastMessage = null;
  }

  #again() {
    const most = Math.min(20_000, 500 * 2 ** this.#attempt++);
    this.#timer = setTimeout(() => this.open(), most / 2 + (Math.random() * most) / 2);
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
