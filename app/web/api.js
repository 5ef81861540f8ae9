// The service, asked by relative addresses: the page works wherever it is served.

import { fileSize } from "./format.js";

const MAX_ATTEMPTS = 4;
const MAX_WAIT_SECONDS = 20;

let key = "";
let waiting = []; // callers whose request was answered 401, until a key is there
let askForKey = () => {};

/** `show` shows the field for the key; `rejected` says that a key was sent and is not known. */
export function onUnauthorized(show) {
  askForKey = show;
}

/** Send what waited for a key, with this one. */
export function useKey(value) {
  key = value;
  const again = waiting;
  waiting = [];
  for (const go of again) go();
}

export function hasKey() {
  return key !== "";
}

/** What went wrong, for people: `code` as in the problem document, or "unreachable". */
export class Failure extends Error {
  constructor(code, detail, { headers, instance } = {}) {
    super(detail);
    this.code = code;
    this.instance = instance;
    this.retryAfter = Number.parseInt(headers?.get("Retry-After") ?? "", 10);
  }
}

/**
 * The response. A busy service is asked again when it says so, and `onWait(seconds)` told; a request without a key
 * waits for one. Throws a Failure, or the AbortError of `signal`.
 */
export async function ask(path, { method = "GET", body, signal, onWait = () => {} } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const sentKey = key;
    try {
      return await once(path, { method, body, signal });
    } catch (failure) {
      if (failure.code === "unauthorized") {
        await keyed(sentKey);
        attempt -= 1;
        continue;
      }
      const seconds = failure.retryAfter;
      if (!(seconds >= 0) || seconds > MAX_WAIT_SECONDS || attempt === MAX_ATTEMPTS) throw failure;
      onWait(seconds);
      await pause(seconds, signal);
    }
  }
}

async function once(path, { method, body, signal }) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { method, body, signal, headers });
  } catch (error) {
    if (signal?.aborted) throw error;
    // A body that is refused while it is being sent looks the same from here as a cable that is out.
    const size = body?.size ? ` If it can be, then the file (${fileSize(body.size)}) may be too large for it.` : "";
    throw new Failure("unreachable", `The service cannot be reached.${size}`);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Failure(problem.code ?? `http_${response.status}`, problem.detail ?? `HTTP status ${response.status}`, {
    headers: response.headers,
    instance: problem.instance,
  });
}

function keyed(sentKey) {
  return new Promise((resolve) => {
    if (sentKey !== key) {
      resolve(); // another key came while this request was under way
      return;
    }
    waiting.push(resolve);
    askForKey({ rejected: sentKey !== "" });
  });
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

export async function predict(image, options) {
  const started = performance.now();
  const response = await ask("predict?top_k=10", { method: "POST", body: image, ...options });
  const answer = await response.json();
  return { answer, milliseconds: performance.now() - started };
}

/** A picture of where in the image the model sees the class. */
export async function explain(image, classId, options) {
  const response = await ask(`explain?class_id=${classId}`, { method: "POST", body: image, ...options });
  return response.blob();
}

export async function getJson(path) {
  return (await ask(path)).json();
}

export async function getPicture(path) {
  return (await ask(path)).blob();
}

/** The request that the page sends for this file, for a shell. The key is left for the shell to fill in. */
export function curl(fileName) {
  const words = ["curl", "--data-binary", quoted(`@${fileName}`)];
  if (hasKey()) words.push("-H", '"Authorization: Bearer $API_KEY"');
  return [...words, quoted(new URL("predict?top_k=10", document.baseURI).href)].join(" ");
}

function quoted(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
