// Requests to the service. Their addresses are relative, so that the page works under any prefix.

import { fileSize } from "./format.js";

const MAX_ATTEMPTS = 4;
const MAX_WAIT_SECONDS = 20;

let key = "";
let waiting = []; // resumes the requests that were answered 401 and wait for a key
let askForKey = () => {};

/** `show({rejected})` shows the field for the key. `rejected`: the service does not know the key that was sent. */
export function onUnauthorized(show) {
  askForKey = show;
}

/** Use this key from now on, and send the requests that wait for one. */
export function useKey(value) {
  key = value;
  const again = waiting;
  waiting = [];
  for (const resume of again) resume();
}

/**
 * A request that failed. `code` is that of the problem document. Without such a document it is "http_<status>", and
 * without any answer "unreachable".
 */
class Failure extends Error {
  constructor(code, detail, { headers, instance } = {}) {
    super(detail);
    this.code = code;
    this.instance = instance;
    this.retryAfter = Number.parseInt(headers?.get("Retry-After") ?? "", 10);
  }
}

/**
 * The response. If the service is busy, waits as long as its `Retry-After` says, calls `onWait(seconds)` and tries
 * again. If the service wants a key, waits until there is one. Throws a Failure, or the AbortError of `signal`.
 */
async function send(path, { method = "GET", body, signal, onWait = () => {} } = {}) {
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
    // A service that refuses a body in the middle of the upload looks the same here as a broken connection.
    const size = body?.size
      ? ` If your network works, the file (${fileSize(body.size)}) may be too large for the service.`
      : "";
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
      resolve(); // the key has changed during this request
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
  const response = await send("predict?top_k=10", { method: "POST", body: image, ...options });
  const answer = await response.json();
  return { answer, milliseconds: performance.now() - started };
}

/** The activation map of the class, as a picture. */
export async function explain(image, classId, options) {
  const response = await send(`explain?class_id=${classId}`, { method: "POST", body: image, ...options });
  return response.blob();
}

export async function getJson(path) {
  return (await send(path)).json();
}

export async function getPicture(path) {
  return (await send(path)).blob();
}

/** The page's request for this file as a shell command. The shell fills in the key. */
export function curl(fileName) {
  const parts = ["curl", "--data-binary", quoted(`@${fileName}`)];
  if (key !== "") parts.push("-H", '"Authorization: Bearer $API_KEY"');
  return [...parts, quoted(new URL("predict?top_k=10", document.baseURI).href)].join(" ");
}

function quoted(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
