// Calls the service: URLs relative to the page, the caller's key, time limits, and errors in words.

/** A host may have several services below its paths, and each gets its own key only. /docs uses the same name. */
const STORED_KEY = `fast-embedding-key ${new URL(".", document.baseURI).pathname}`;
const TIMEOUT_MS = 15_000;
/** Codes of 401 and 403 that another key may cure; the other ones are settings of the service. */
const CURED_BY_A_KEY = new Set(["unauthenticated", "missing-scope"]);

/** An answer that is an error, with what the problem document says. */
export class ServiceError extends Error {
  constructor(status, problem, headers) {
    super(wordsOfProblem(status, problem));
    this.name = "ServiceError";
    this.status = status;
    this.problem = problem;
    this.code = typeof problem.code === "string" ? problem.code : "";
    this.requestId = problem.request_id ?? headers?.get("x-request-id") ?? "";
    this.retryAfterSeconds = Number(headers?.get("retry-after")) || null;
  }

  /** Whether a key, or another one, may help. */
  get wantsKey() {
    return this.status === 401 || (this.status === 403 && CURED_BY_A_KEY.has(this.code));
  }
}

/** No answer: the service is down, the network is, or the time limit has passed. */
export class UnreachableError extends Error {
  constructor(words, options) {
    super(words, options);
    this.name = "UnreachableError";
  }
}

function wordsOfProblem(status, problem) {
  const parts = [problem.detail ?? problem.title ?? `The service answered with status ${status}.`];
  for (const error of Array.isArray(problem.errors) ? problem.errors : []) {
    parts.push(
      typeof error === "string"
        ? error
        : [error.field ?? error.key ?? error.loc, error.message ?? error.detail].flat().filter(Boolean).join(": "),
    );
  }
  if (Array.isArray(problem.closest) && problem.closest.length)
    parts.push(`Did you mean ${problem.closest.join(", ")}?`);
  return parts.filter(Boolean).join(" ");
}

/** Return any error of this module as a sentence for people. */
export function inWords(error) {
  if (error instanceof ServiceError) {
    const wait = error.retryAfterSeconds ? ` Try again in ${error.retryAfterSeconds} s.` : "";
    return error.message + wait;
  }
  if (error instanceof UnreachableError) return error.message;
  if (error?.name === "AbortError") return "The request was cancelled.";
  return `The page has an error of its own: ${error?.message ?? error}`;
}

/** The URL of a route, such as "embed" or "v1/models": relative, so that any path prefix works. */
export function url(route) {
  return new URL(route.replace(/^\.?\//, ""), document.baseURI.replace(/[?#].*$/, "").replace(/[^/]*$/, "")).href;
}

// The key, in the storage of this tab. If storage is blocked, in memory.

let keyInMemory = "";
const keyListeners = new Set();

export function getKey() {
  try {
    return sessionStorage.getItem(STORED_KEY) ?? keyInMemory;
  } catch {
    return keyInMemory;
  }
}

/** Keep `key` for this tab; "" removes it. */
export function setKey(key) {
  keyInMemory = key;
  try {
    if (key) sessionStorage.setItem(STORED_KEY, key);
    else sessionStorage.removeItem(STORED_KEY);
  } catch {
    // Storage is blocked: the key stays in memory.
  }
  for (const listener of keyListeners) listener(key);
}

export function onKeyChange(listener) {
  keyListeners.add(listener);
}

/** Asks the user for a key; set by app.js. Resolves to a key, or to "" if the user gave none. */
let askForKey = async () => "";
let asking = null;
let declined = false;

export function setKeyDialog(ask) {
  askForKey = ask;
}

/** Return why `error` asks for a key. Without a key, the service's own words explain headers, which only programs need. */
export function whyKey(error) {
  return getKey() ? error.message : "The service answers this only to callers with a key.";
}

/** Ask for a key, once for all requests that want one now. Return whether there is a new one. */
async function obtainKey(error) {
  asking ??= askForKey(error ? whyKey(error) : "").finally(() => {
    asking = null;
  });
  const key = await asking;
  declined = !key;
  return Boolean(key);
}

/**
 * Call the service and return the response if its status is below 400.
 *
 * Options: method, body (an object becomes JSON), headers, accept, signal, timeoutMs, and `ask`: whether to ask for a
 * key when one is wanted: "always" (default: somebody pressed a button), "once" (not after it was declined), "never".
 * Throws ServiceError, UnreachableError, or AbortError if `signal` says so.
 */
export async function request(route, options = {}) {
  for (;;) {
    const key = getKey();
    const response = await send(route, options, key);
    if (response.ok) return response;
    const error = new ServiceError(response.status, await problemOf(response), response.headers);
    if (!error.wantsKey) throw error;
    if (getKey() !== key) continue; // another request has obtained one meanwhile
    const { ask = "always" } = options;
    if (ask === "never" || (ask === "once" && declined) || !(await obtainKey(error))) throw error;
  }
}

async function send(route, { method, body, headers, accept, signal, timeoutMs = TIMEOUT_MS }, key) {
  const limit = AbortSignal.timeout(timeoutMs);
  const sent = new Headers(headers);
  sent.set("Accept", accept ?? "application/json");
  if (key) sent.set("Authorization", `Bearer ${key}`);
  if (body !== undefined) sent.set("Content-Type", "application/json");
  try {
    return await fetch(url(route), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: sent,
      body: body === undefined || typeof body === "string" ? body : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      // With no-store, the browser sends Cache-Control: no-cache, and the service would compute each text anew.
      cache: body === undefined ? "no-store" : "default",
      credentials: "same-origin",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (limit.aborted)
      throw new UnreachableError(`The service did not answer within ${Math.round(timeoutMs / 1000)} s.`, {
        cause: error,
      });
    throw new UnreachableError("The service does not answer.", { cause: error });
  }
}

async function problemOf(response) {
  try {
    const problem = await response.json();
    if (problem && typeof problem === "object") return problem;
  } catch {
    // Not JSON: a proxy's own page, or nothing.
  }
  return { title: `Something between this page and the service answered with status ${response.status}.` };
}

/** Call the service and return the JSON of its answer. Options as `request`. */
export async function json(route, options = {}) {
  const response = await request(route, options);
  try {
    return await response.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new UnreachableError("The answer of the service was cut short, or is not JSON.", { cause: error });
  }
}

/** Send `body` as JSON and return the JSON of the answer. Options as `request`. */
export function post(route, body, options = {}) {
  return json(route, { ...options, body });
}

/** Open the dialog because of `error`, unless it is open or was declined. Listeners of `onKeyChange` learn of a key. */
export function offerDialog(error) {
  if (!declined && !asking) obtainKey(error);
}

/** Open the dialog, because the user wants to. */
export function enterKey() {
  return obtainKey(null);
}
