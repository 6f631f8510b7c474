// What an application does with a client that is made from /openapi.json: it logs in, asks who it is, and is refused.
// Type-checked before it runs: a field or a route that is not in the description does not compile.
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const [, , baseUrl, email, password] = process.argv as string[];
const client = createClient<paths>({ baseUrl: baseUrl! });

const login = await client.POST("/auth/login", { body: { email: email!, password: password!, mode: "token" } });
if (!login.data) throw new Error(`login: ${login.error.code}`);
const token: string | undefined = login.data.access_token;

const me = await client.GET("/auth/me", { headers: { Authorization: `Bearer ${token}` } });
if (!me.data) throw new Error(`me: ${me.error.code}`);
// @ts-expect-error - a user has no such field
void me.data.user.shoe_size;

const wrong = await client.POST("/auth/login", { body: { email: email!, password: "not the password", mode: "token" } });
console.log(JSON.stringify({ id: me.data.user.id, sid: me.data.session.sid, refused: wrong.error?.code }));
