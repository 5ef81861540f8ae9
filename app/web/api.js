// Requests to the service. Their addresses are relative, so that the page works under any prefix.

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
 * A request that failed. `code` is that of the problem document. An answer that is not the service's, but that of a
 * proxy in front of it, has "proxy_<status>", and no answer at all "unreachable".
 */
class Failure extends Error {
  constructor(code, detail, { headers, instance } = {}) {
    super(detail);
    this.code = code;
    this.instance = instance;
    this.retryAfter = Number.parseInt(headers?.get("Retry-After") ?? "", 10);
  }
}

// How an answer's content is read, and the Content-Type that the service gives it. A proxy's login page has another.
const JSON_CONTENT = { type: "application/json", read: (response) => response.json() };
const PICTURE = { type: "image/", read: (response) => response.blob() };

/**
 * {content, milliseconds, requestId}: the answer, how long it took, without the time in which this function waits, and
 * the id by which the service knows it. If the service is busy, it waits as long as its `Retry-After` says, calls `onWait(seconds)` and tries again. If the service
 * wants a key, it waits until there is one. Throws a Failure, or the AbortError of `signal`.
 */
async function send(path, kind, { method = "GET", body, signal, onWait = () => {} } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const sentKey = key;
    try {
      return await once(path, kind, { method, body, signal });
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

async function once(path, kind, { method, body, signal }) {
  const started = performance.now();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { method, body, signal, headers });
    if (response.ok && hasType(response, kind.type)) {
      const content = await kind.read(response);
      const requestId = response.headers.get("X-Request-ID");
      return { content, milliseconds: performance.now() - started, requestId };
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure("unreachable", error.message);
  }
  throw await failureOf(response);
}

async function failureOf(response) {
  const { headers, status } = response;
  const problem = hasType(response, "application/problem+json") ? await response.json().catch(() => null) : null;
  if (problem) return new Failure(problem.code, problem.detail, { headers, instance: problem.instance });
  // A proxy that asks for a key as the service does is answered as the service is.
  if (status === 401 && /^bearer\b/i.test(headers.get("WWW-Authenticate") ?? ""))
    return new Failure("unauthorized", `HTTP status ${status}`);
  return new Failure(`proxy_${status}`, `HTTP status ${status}, not from the service`, { headers });
}

function hasType(response, type) {
  return (response.headers.get("Content-Type") ?? "").startsWith(type);
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

/** Whether the page sends a key. */
export function hasKey() {
  return key !== "";
}

/** {answer, milliseconds, requestId} of the image, a Blob. */
export async function predict(image, query, options) {
  const sent = { method: "POST", body: image, ...options };
  const { content, ...others } = await send(`predict?${query}`, JSON_CONTENT, sent);
  return { answer: content, ...others };
}

/** Tell the true class of the image whose answer has this id. */
export async function tellLabel(requestId, label, options) {
  const body = new Blob([JSON.stringify({ request_id: requestId, label })], { type: "application/json" });
  await send("feedback", JSON_CONTENT, { method: "POST", body, ...options });
}

/** The activation map of a class, as a picture. */
export async function explain(image, query, options) {
  return (await send(`explain?${query}`, PICTURE, { method: "POST", body: image, ...options })).content;
}

export async function getJson(path) {
  return (await send(path, JSON_CONTENT)).content;
}

export async function getPicture(path) {
  return (await send(path, PICTURE)).content;
}
