// What the charts of the Overview show, in which words.

import { count, milliseconds, percent, perSecond } from "./figures.js";

export const THROUGHPUT = {
  title: "Requests and texts",
  hint: "POST requests answered per second.",
  format: perSecond,
  empty: "No work yet. Embed something in the Playground, and it appears here.",
  series: [
    { name: "texts", label: "Texts", token: "--series-1" },
    { name: "requests", label: "Requests", token: "--series-2" },
  ],
};

export const TOKENS = {
  title: "Tokens",
  hint: "Tokens of answered texts per second, without padding.",
  format: perSecond,
  empty: "No tokens yet.",
  series: [{ name: "tokens", label: "Tokens", token: "--series-3" }],
};

export const LATENCY = {
  title: "Latency",
  hint: "Of the latest 2,048 served requests of the route.",
  format: milliseconds,
  isOptional: true, // a route that was not called yet has no percentiles
  empty: "No requests on this route in the time shown.",
};

export function latencySeries(route) {
  return [
    { name: `p99:${route}`, label: "99th percentile", token: "--series-5" },
    { name: `p95:${route}`, label: "95th percentile", token: "--series-2" },
    { name: `p50:${route}`, label: "Median", token: "--series-1" },
    { name: "stage:queue", label: "Queue wait, mean", token: "--series-7", dash: [5, 4] },
  ];
}

export const STAGES = {
  title: "Where the time goes",
  hint: "Mean per request and stage.",
  format: milliseconds,
  empty: "No requests that did work in the time shown.",
  series: [
    { name: "stage:queue", label: "Waiting in the queue", token: "--series-2" },
    { name: "stage:run", label: "Running the model", token: "--series-1" },
    { name: "stage:tokenize", label: "Tokenising", token: "--series-3" },
    { name: "stage:cache", label: "Looking up cached results", token: "--series-4" },
  ],
};

export const BACKLOG = {
  title: "Queue",
  hint: "Waiting work as a share of its limit.",
  format: percent,
  max: 100,
  empty: "Nothing has waited in the time shown.",
  series: [
    { name: "backlog:interactive", label: "Interactive", token: "--series-1" },
    { name: "backlog:bulk", label: "Bulk", token: "--series-2" },
    { name: "backlog:tokenize", label: "Tokenising", token: "--series-3" },
    { name: "backlog:decode", label: "Large bodies", token: "--series-4" },
  ],
};

export const LANES = {
  title: "Lanes",
  hint: "Share of time that inference threads were busy.",
  format: percent,
  max: 100,
  empty: "Waiting for the first figures …",
  series: [{ name: "lanes", label: "Busy", token: "--series-4" }],
};

export const CACHE = {
  title: "Cache hits",
  hint: "Share of texts that were not computed again.",
  format: percent,
  max: 100,
  empty: "No text was looked up in the time shown.",
  series: [{ name: "hit_rate", label: "Hit rate", token: "--series-3" }],
};

export const CONNECTIONS = {
  title: "Connections",
  hint: "Open now, and requests that are being answered.",
  format: count,
  max: 4,
  empty: "Waiting for the first figures …",
  series: [
    { name: "connections", label: "Connections", token: "--series-7" },
    { name: "in_flight", label: "Requests in flight", token: "--series-1" },
  ],
};

export const ERRORS = {
  title: "Errors",
  hint: "Count within the minute before.",
  format: count,
  max: 4,
  empty: "No errors in the time shown.",
  series: [
    { name: "minute:quota", label: "Over a quota (429)", token: "--series-4" },
    { name: "minute:refused", label: "Refused (503)", token: "--series-2" },
    { name: "minute:caller", label: "Client errors (4xx)", token: "--series-7" },
    { name: "minute:service", label: "Server errors (5xx)", token: "--series-5" },
  ],
};
