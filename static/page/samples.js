// Turns successive answers of /metrics into figures per interval: rates, shares, means. Counters of a service that was
// restarted begin anew. In a sample, undefined means "not reported", null "no value in this interval".

import { isNumber } from "./figures.js";
import { kindOf } from "./error-words.js";

export const LONGEST_INTERVAL_S = 12;
const LONGEST_HISTORY_S = 3600;
/** Kinds of errors, as in error-words.js. */
export const KINDS = ["quota", "refused", "caller", "service"];

/** Parts of the answer that are records of records, by a name that is not known beforehand. */
const BY_NAME = new Set(["endpoints", "models", "backlog", "stages"]);
const PARTS = [
  "errors",
  "statuses",
  "rate_limited",
  "queue",
  "connections",
  "result_cache",
  "cache_info",
  "model_loads",
  "micro_batches",
  "limits",
  "log",
  "workers",
];

export const isRecord = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Return the answer without what has another shape than expected: it then counts as not reported. */
export function tidied(metrics) {
  const kept = { ...metrics };
  for (const name of [...BY_NAME, ...PARTS]) if (!isRecord(kept[name])) delete kept[name];
  for (const name of BY_NAME) {
    if (kept[name]) kept[name] = Object.fromEntries(Object.entries(kept[name]).filter(([, value]) => isRecord(value)));
  }
  return kept;
}

const sum = (values) => values.reduce((total, value) => total + (isNumber(value) ? value : 0), 0);
const entries = (found) => Object.entries(found ?? {});

/** Whether the service was restarted between two answers. */
export function isRestart(now, before) {
  return isNumber(now.uptime_seconds) && isNumber(before.uptime_seconds) && now.uptime_seconds < before.uptime_seconds;
}

/** How much a counter grew. After a restart, or if it fell, it began at 0. */
export function growth(now, before, restarted) {
  if (!isNumber(now)) return undefined;
  return restarted || !isNumber(before) || now < before ? now : now - before;
}

/** Requests that asked for work: what the page and monitoring ask for is not among them. */
export function requestsForWork(metrics) {
  if (!metrics.endpoints) return metrics.total_requests;
  return sum(
    entries(metrics.endpoints)
      .filter(([name]) => isWork(name))
      .map(([, endpoint]) => endpoint.requests),
  );
}

export const isWork = (route) => route.startsWith("POST ");

export const tokensOf = (metrics) =>
  metrics.models ? sum(Object.values(metrics.models).map((model) => model.tokens)) : undefined;

/** Return the figures of one interval by name. `before` is null for the first answer. */
export function sampleOf(now, before, intervalS) {
  const restarted = before !== null && isRestart(now, before);
  const passedS = restarted ? Math.min(intervalS, now.uptime_seconds) : intervalS;
  const first = before === null || !(passedS > 0);
  const grown = (read) => {
    const value = read(now);
    if (!isNumber(value)) return undefined;
    return first ? null : growth(value, read(before), restarted);
  };
  const rate = (read) => scaled(grown(read), 1 / passedS);
  const ratio = (part, whole) => quotient(grown(part), grown(whole));

  const sample = {
    requests: rate(requestsForWork),
    texts: rate((metrics) => metrics.total_embeddings),
    tokens: rate(tokensOf),
    waiting_texts: now.queue?.waiting_texts,
    in_flight: now.in_flight,
    connections: now.connections?.open,
    lag: scaled(now.event_loop_lag_seconds, 1000),
    lanes: now.queue?.lanes
      ? atMost(
          100,
          scaled(
            rate((metrics) => metrics.lanes_busy_seconds),
            100 / now.queue.lanes,
          ),
        )
      : undefined,
    hit_rate: scaled(
      ratio(
        (metrics) => sumOf(metrics.result_cache, ["hits", "coalesced"]),
        (metrics) => sumOf(metrics.result_cache, ["hits", "coalesced", "misses"]),
      ),
      100,
    ),
  };
  for (const [kind, backlog] of entries(now.backlog)) {
    sample[`backlog:${kind}`] = quotient(scaled(backlog.seconds, 100), backlog.limit_seconds);
  }
  for (const stage of Object.keys(now.stages ?? {})) {
    sample[`stage:${stage}`] = scaled(
      ratio(
        (metrics) => metrics.stages?.[stage]?.seconds ?? 0,
        (metrics) => metrics.stages?.[stage]?.count ?? 0,
      ),
      1000,
    );
  }
  for (const kind of now.errors ? KINDS : []) {
    sample[`errors:${kind}`] = grown((metrics) => errorsOf(metrics, kind));
  }
  for (const [name, endpoint] of entries(now.endpoints)) {
    const answered = first
      ? endpoint.requests
      : growth(endpoint.requests, before.endpoints?.[name]?.requests, restarted);
    for (const [percentile, value] of entries(endpoint.latency_ms)) {
      sample[`${percentile}:${name}`] = !first && answered > 0 ? value : null;
    }
  }
  return sample;
}

function scaled(value, factor) {
  return isNumber(value) ? value * factor : value;
}

/** Times are taken where answers arrive: by a delay on the way, a share may seem to exceed the whole. */
function atMost(limit, value) {
  return isNumber(value) ? Math.min(limit, value) : value;
}

function quotient(part, whole) {
  if (part === undefined || whole === undefined) return undefined;
  return isNumber(part) && isNumber(whole) && whole > 0 ? part / whole : null;
}

function sumOf(found, names) {
  return found && names.every((name) => isNumber(found[name])) ? sum(names.map((name) => found[name])) : undefined;
}

function errorsOf(metrics, kind) {
  return sum(
    entries(metrics.errors)
      .filter(([code]) => kindOf(code) === kind)
      .map(([, number]) => number),
  );
}

/** The figures of the last hour, as columns that uPlot draws. */
export class History {
  times = [];
  /** When the service was restarted. */
  restarts = [];
  #columns = new Map();

  push(t, sample) {
    for (const name of Object.keys(sample)) {
      if (sample[name] !== undefined && !this.#columns.has(name))
        this.#columns.set(name, Array(this.times.length).fill(null));
    }
    this.times.push(t);
    for (const [name, column] of this.#columns) column.push(isNumber(sample[name]) ? sample[name] : null);
    while (this.times[0] < t - LONGEST_HISTORY_S) {
      this.times.shift();
      for (const column of this.#columns.values()) column.shift();
    }
  }

  /** The sum of a figure since `t`, a sample that is about to be pushed included; undefined: not reported. */
  sumSince(name, t, latest) {
    if (latest === undefined) return undefined;
    let total = isNumber(latest) ? latest : 0;
    const column = this.column(name);
    for (let index = column.length - 1; index >= 0 && this.times[index] > t; index -= 1) total += column[index] ?? 0;
    return total;
  }

  /** Whether the service has reported this figure. */
  has(name) {
    return this.#columns.has(name);
  }

  column(name) {
    return this.#columns.get(name) ?? Array(this.times.length).fill(null);
  }

  /** The latest value, or null. */
  latest(name) {
    return this.column(name).at(-1) ?? null;
  }
}
