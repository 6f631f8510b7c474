// Drives the JavaScript SDK against a running gateway. One JSON command a line on stdin, one JSON event a line on stdout.
import readline from "node:readline";
import WebSocket from "ws";
import { Centrifuge as JsonCentrifuge } from "centrifuge";
import { Centrifuge as ProtobufCentrifuge } from "centrifuge/build/protobuf";

const [url, codec] = process.argv.slice(2);
const protobuf = codec === "protobuf";
const Centrifuge = protobuf ? ProtobufCentrifuge : JsonCentrifuge;
const say = (event, detail = {}) => process.stdout.write(JSON.stringify({ event, ...detail }) + "\n");
const read = (data) => (protobuf ? JSON.parse(new TextDecoder().decode(data)) : data);
const write = (data) => (protobuf ? new TextEncoder().encode(JSON.stringify(data)) : data);

let client;
let subscription;
let token = "";

const actions = {
  connect({ token: first }) {
    token = first;
    client = new Centrifuge(url, {
      websocket: WebSocket,
      minReconnectDelay: 50,
      maxReconnectDelay: 200,
      getToken: async () => {
        say("getToken");
        return token;
      },
    });
    client.on("connected", ({ client: id, transport }) => say("connected", { client: id, transport }));
    client.on("connecting", ({ code, reason }) => say("connecting", { code, reason }));
    client.on("disconnected", ({ code, reason }) => say("disconnected", { code, reason }));
    client.on("message", ({ data }) => say("message", { data: read(data) }));
    client.on("error", ({ error }) => say("error", { code: error.code, message: error.message }));
    client.connect();
  },
  subscribe({ channel, since }) {
    subscription = client.newSubscription(channel, { joinLeave: true, recoverable: true, ...(since ? { since } : {}) });
    subscription.on("publication", ({ data, offset, info }) => say("publication", { data: read(data), offset, user: info?.user }));
    subscription.on("join", ({ info }) => say("join", { user: info.user }));
    subscription.on("leave", ({ info }) => say("leave", { user: info.user }));
    subscription.on("subscribed", ({ wasRecovering, recovered, recoverable, positioned }) =>
      say("subscribed", { wasRecovering, recovered, recoverable, positioned }));
    subscription.on("subscribing", ({ code, reason }) => say("subscribing", { code, reason }));
    subscription.on("unsubscribed", ({ code, reason }) => say("unsubscribed", { code, reason }));
    subscription.on("error", ({ error }) => say("subscription error", { code: error.code, message: error.message }));
    subscription.subscribe();
  },
  async publish({ data }) {
    await subscription.publish(write(data));
    say("published");
  },
  async presence() {
    const { clients } = await subscription.presence();
    const { numClients, numUsers } = await subscription.presenceStats();
    say("presence", { users: Object.values(clients).map((info) => info.user), numClients, numUsers });
  },
  async history({ limit }) {
    const { publications, offset, epoch } = await subscription.history({ limit });
    say("history", { data: publications.map((p) => read(p.data)), offset, epoch });
  },
  token({ token: next }) {
    token = next;
    say("token");
  },
  drop() {
    client._transport.close(); // as when the network goes
    say("dropped");
  },
  quit() {
    client?.disconnect();
    process.exit(0);
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { action, ...detail } = JSON.parse(line);
  try {
    await actions[action](detail);
  } catch (error) {
    say("failed", { action, code: error.code, message: error.message ?? String(error) });
  }
}
