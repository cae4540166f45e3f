/** Embeds many texts with one set of options: in batches, with progress, and with patience while the service is busy. */

import { bytesOfBase64 } from "./vectors.js";

const FIRST_BATCH = 32; // the default of MAX_BATCH_SIZE; a service with a smaller one says so
const TIMEOUT_MS = 150_000; // the first request may load a model
const MAX_ATTEMPTS = 4;
const MAX_WAIT_S = 30;
const BUSY_CODES = new Set(["overloaded", "rate-limited", "too-many-connections"]);

/** Waits `seconds`, or rejects with an AbortError. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

/** The largest number of texts per request, learned from the service's answers. */
let batchSize = FIRST_BATCH;

/**
 * Send `texts` to `route` in batches, and call `take(answer, headers, start)` with each answer.
 *
 * An error gets `start` (of its batch) and so `text`, the index of the text it is about, if it is about one.
 * `report(done, words)` is called after each batch, and with words while the service is busy.
 */
export async function inBatches(api, route, texts, options, { signal, take, report = () => {} }) {
  let start = 0;
  for (let attempt = 1; start < texts.length; ) {
    const batch = texts.slice(start, start + batchSize);
    try {
      const response = await api.request(route, { body: { texts: batch, ...options }, signal, timeoutMs: TIMEOUT_MS });
      take(await response.json(), response.headers, start);
      start += batch.length;
      attempt = 1;
      report(start, "");
    } catch (error) {
      const problem = error.problem ?? {};
      const isTooMany = problem.field === "texts" && problem.index === undefined && problem.limit < batch.length;
      if (isTooMany && problem.limit > 0) {
        batchSize = problem.limit;
      } else if (canWait(error) && attempt < MAX_ATTEMPTS) {
        report(start, `${error.message} Trying again in ${error.retryAfterSeconds} s.`);
        await pause(error.retryAfterSeconds, signal);
        attempt += 1;
      } else {
        if (Number.isInteger(problem.index)) error.text = start + problem.index;
        throw error;
      }
    }
  }
}

function canWait(error) {
  return BUSY_CODES.has(error.code) && error.retryAfterSeconds > 0 && error.retryAfterSeconds <= MAX_WAIT_S;
}

/** Embed `texts`. Returns the vectors' `bytes`, one array per text, and what the answers and their headers say. */
export async function embed(api, texts, options, { signal, report }) {
  const result = { options, texts, bytes: [], tokens: [], truncated: [], dimension: 0, cache: null, timing: {}, milliseconds: 0 };
  await inBatches(api, "embed/batch", texts, { ...options, encoding: "base64" }, {
    signal,
    report,
    take(answer, headers) {
      for (const vector of answer.embeddings) result.bytes.push(bytesOfBase64(vector));
      result.tokens.push(...answer.tokens);
      result.truncated.push(...answer.truncated);
      result.dimension = answer.dimension;
      result.model = answer.model_name;
      result.milliseconds += answer.processing_time_ms;
      addCounts(result, headers);
    },
  });
  return result;
}

/** Add `X-Cache: hit=3, miss=29` and `Server-Timing: queue;dur=1.5` to the sums. Both may be missing. */
function addCounts(result, headers) {
  for (const [, name, count] of (headers.get("x-cache") ?? "").matchAll(/(\w+)=(\d+)/g)) {
    result.cache ??= {};
    result.cache[name] = (result.cache[name] ?? 0) + Number(count);
  }
  for (const [, name, ms] of (headers.get("server-timing") ?? "").matchAll(/([\w-]+)[^,]*?;\s*dur=([\d.]+)/g)) {
    result.timing[name] = (result.timing[name] ?? 0) + Number(ms);
  }
}
