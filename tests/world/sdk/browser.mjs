// What a page has and Node lacks, for samples that are written for pages: addresses relative to the site, its cookie, its Origin.
import WebSocket from "ws";

const { SITE: site, COOKIE: cookie } = process.env;
const fetchAnywhere = globalThis.fetch;
globalThis.fetch = (path, options = {}) =>
  fetchAnywhere(new URL(path, site), { ...options, headers: { ...options.headers, Cookie: cookie, Origin: site } });
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { headers: { Cookie: cookie, Origin: site } });
  }
};
