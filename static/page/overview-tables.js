// The end of the Overview: routes, connections and limits, and workers if there are several.

import { h, setText } from "./dom.js";
import { NONE, NOT_REPORTED, bytes, count, duration, isNumber, milliseconds, percent, seconds } from "./figures.js";
import { card, table } from "./overview-errors.js";
import { isWork } from "./samples.js";

export class Tables {
  #routes = table(
    "Routes",
    ["Route", "Requests", "Median", "95th percentile", "99th percentile"],
    ["Requests", "Median", "95th percentile", "99th percentile"],
  );
  #moment = h("span");
  #inside = table("Inside the service", ["Figure", "Now"], ["Now"]);
  #workers = table(
    "Workers",
    ["Worker", "State", "Up for", "Requests", "Queue", "Connections", "Memory", "Replaced"],
    ["Up for", "Requests", "Queue", "Connections", "Memory", "Replaced"],
  );

  constructor() {
    this.workersSection = section(
      "Workers",
      "Each is a process of its own; the figures above are sums of all.",
      this.#workers.element,
    );
    this.workersSection.hidden = true;
    const inside = section("Inside the service", this.#moment, this.#inside.element);
    inside.classList.add("inside");
    this.figures = h(
      "div",
      { class: "grid wide-narrow" },
      section(
        "Routes",
        "Since the service started; percentiles of the latest 2,048 served requests of each.",
        this.#routes.element,
      ),
      inside,
    );
    this.element = h("div", { class: "stack" }, this.figures, this.workersSection);
  }

  update({ metrics, metricsProblem }, before) {
    this.figures.hidden = metrics === null && before === null && metricsProblem !== null;
    setText(this.#moment, metrics ? "Figures of this moment, this page's own request included." : "Figures of the last answer.");
    if (!metrics) return;
    this.#writeRoutes(metrics.endpoints);
    this.#writeInside(metrics);
    this.#writeWorkers(metrics.workers);
  }

  #writeRoutes(endpoints) {
    if (!endpoints) return this.#routes.say(`Routes are ${NOT_REPORTED}.`);
    const rows = Object.entries(endpoints).sort(
      ([a, { requests }], [b, { requests: others }]) => isWork(b) - isWork(a) || others - requests,
    );
    this.#routes.write(
      rows.map(([name, { requests, latency_ms: latency }]) => [
        [name, "mono"],
        number(count(requests)),
        ...["p50", "p95", "p99"].map((percentile) => number(milliseconds(latency?.[percentile]))),
      ]),
    );
    return this.#routes.say(rows.length ? "" : "No requests yet.");
  }

  #writeInside(metrics) {
    const { connections, queue, result_cache: cache, limits, log, micro_batches: runs } = metrics;
    const known = (value, words) => (isNumber(value) ? words : NOT_REPORTED);
    const rows = [
      ["Requests in flight", known(metrics.in_flight, count(metrics.in_flight))],
      [
        "Connections open",
        connections
          ? `${count(connections.open)} (${count(connections.processing)} working, ${count(connections.receiving)} receiving, ${count(connections.idle)} idle)`
          : NOT_REPORTED,
      ],
      ["Request bodies in memory", known(connections?.body_bytes, bytes(connections?.body_bytes))],
      [
        "Event-loop delay, last 30 s",
        known(metrics.event_loop_lag_seconds, milliseconds(metrics.event_loop_lag_seconds * 1000)),
      ],
      [
        "Waiting",
        queue
          ? `${count(queue.waiting_requests)} requests, ${count(queue.waiting_texts)} texts, ${seconds(queue.waiting_seconds)}`
          : NOT_REPORTED,
      ],
      ["Texts per model run", runs ? (runs.runs ? (runs.texts / runs.runs).toFixed(1) : NONE) : NOT_REPORTED],
      [
        "Inference threads",
        queue
          ? `${count(queue.lanes)}${queue.lanes_died ? `, ${count(queue.lanes_died)} died and were replaced` : ""}`
          : NOT_REPORTED,
      ],
      ["Result cache", cache ? cacheWords(cache) : NOT_REPORTED],
      ["Results in Redis", cache?.redis?.state ?? NOT_REPORTED],
      [
        "Quotas are counted in",
        limits
          ? ({ off: "nothing: they are off", memory: "memory", redis: "Redis", supervisor: "the supervisor" }[
              limits.store
            ] ?? limits.store)
          : NOT_REPORTED,
      ],
      ["Log lines dropped", known(log?.lines_dropped, count(log?.lines_dropped))],
    ];
    this.#inside.write(rows.map(([label, value]) => [label, number(value)]));
    this.#inside.say("");
  }

  #writeWorkers(workers) {
    this.workersSection.hidden = !workers;
    if (!workers) return;
    this.#workers.write(
      (workers.processes ?? []).map((worker) => [
        String(worker.worker),
        worker.stale ? "does not answer" : (worker.status ?? NONE),
        number(duration(worker.uptime_seconds)),
        number(count(worker.requests)),
        number(seconds(worker.queue_seconds)),
        number(count(worker.connections)),
        number(bytes(worker.proportional_bytes ?? worker.resident_bytes)),
        number(count(Object.values(worker.restarts ?? {}).reduce((total, times) => total + times, 0))),
      ]),
    );
    this.#workers.say(workers.processes?.length ? "" : `Workers are ${NOT_REPORTED}.`);
  }
}

function cacheWords(cache) {
  if (!cache.limit_bytes) return "off";
  return `${count(cache.entries)} results, ${bytes(cache.bytes)} of ${bytes(cache.limit_bytes)} (${percent((cache.bytes / cache.limit_bytes) * 100)})`;
}

function number(text) {
  return [text, "number"];
}

function section(title, hint, content) {
  return card(h("h2", { class: "card-title" }, title), hint, content);
}
