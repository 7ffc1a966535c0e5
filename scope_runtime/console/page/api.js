// Requests to this listener. The key lives in this tab's session storage and travels in a header, never in an address.

const KEY = "scope-admin-key";

let onRefusedKey = () => {};

export function whenKeyIsRefused(tell) {
  onRefusedKey = tell;
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the server refused, as it says it. */
export class Refused extends Error {
  constructor(status, said) {
    super(said.text || said.message);
    this.status = status;
    this.fields = said;
  }
}

async function refusal(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // not ours: a proxy's page, say
  }
  // The control channel's errors are flat, the gateway's are OpenAI's, and a shape that does not fit is FastAPI's.
  const flat = said.message ? said : said.error || {};
  if (Array.isArray(said.detail)) {
    flat.message = said.detail.map((one) => `${one.loc.slice(1).join(".")}: ${one.msg}`).join("; ");
  }
  return new Refused(response.status, { message: `The server answered ${response.status}.`, ...flat });
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  const mine = key.get();
  if (mine) headers.authorization = `Bearer ${mine}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The server cannot be reached.", hint: "Is it still running?" });
  }
  if (response.status === 401) onRefusedKey(Boolean(mine));
  if (!response.ok) throw await refusal(response);
  return response;
}

function asJson(body, signal) {
  return { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}

export async function get(path, query = {}) {
  const said = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const search = said.length ? `?${new URLSearchParams(said)}` : "";
  return (await send(path + search)).json();
}

export async function post(path, body = {}) {
  return (await send(path, asJson(body))).json();
}

/** Posts, and calls `tell` with each server-sent event; resolves at the end of the stream. */
export async function stream(path, body, tell, signal) {
  const response = await send(path, asJson(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) tell(JSON.parse(event.slice(6)));
    }
  }
}
