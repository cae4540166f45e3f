// The top of the Overview: health in words, what is broken and what to do, and the figures of now.

import { ServiceError, UnreachableError, inWords, whyKey } from "./api.js";
import { h, setText } from "./dom.js";
import {
  NONE,
  amount,
  bytes,
  count,
  duration,
  isNumber,
  milliseconds,
  percent,
  seconds,
  timeOfDay,
} from "./figures.js";
import { isRestart } from "./samples.js";

const PHASES = {
  healthy: ["ok", "Healthy", "It accepts work."],
  starting: ["warn", "Starting", "It loads its models and does not accept work yet."],
  draining: ["warn", "Draining", "It finishes what it has begun and accepts no new work."],
};

const requests = (number) => (number === 1 ? "1 request" : `${count(number)} requests`);

const RESTART_SHOWN_S = 300;

export class Status {
  health = { level: "unknown", words: "Connecting …" };
  #api;
  #live;
  #words = h("p", { class: "status-words" }, "Connecting …");
  #details = h("p", { class: "status-details muted number" });
  #notices = h("div", { class: "stack notices" });
  #tiles = new Map();
  #restartedAt = Number.NEGATIVE_INFINITY;
  #lastSeen = null;
  #shown = "";

  constructor({ api, live }) {
    this.#api = api;
    this.#live = live;
    const names = [
      ["requests", "Requests"],
      ["texts", "Texts"],
      ["latency", "Latency, p95"],
      ["waiting", "Work waiting"],
      ["lanes", "Lanes busy"],
      ["cache", "Cache hits"],
    ];
    this.tiles = h(
      "dl",
      { class: "tiles" },
      names.map(([name, label]) => this.#tile(name, label)),
    );
    this.dot = h("span", { class: "dot", "aria-hidden": "true" });
    this.headline = h("div", { class: "status-line", "data-level": "unknown" }, this.dot, this.#words);
    this.element = h(
      "div",
      { class: "stack" },
      h("div", { class: "card status" }, h("div", { class: "status-head" }, this.headline, this.#details), this.tiles),
      this.#notices,
    );
  }

  update(report, before, history) {
    const { health, metrics } = report;
    if (metrics && before && isRestart(metrics, before)) this.#restartedAt = report.t;
    if (health) this.#lastSeen = report.t;
    const [level, words, explanation] = this.#describe(report, history);
    this.health = { level, words };
    this.headline.dataset.level = level;
    setText(
      this.#words,
      health || !(report.healthProblem instanceof UnreachableError) ? `${words}. ${explanation}` : explanation,
    );
    const uptime = health?.uptime_seconds;
    const started = isNumber(uptime) ? `Up for ${duration(uptime)}` : "";
    setText(this.#details, started || (this.#lastSeen ? `Last answer at ${timeOfDay(this.#lastSeen)}` : ""));
    this.#writeNotices(report);
    this.#writeTiles(report.metrics, history);
  }

  #describe({ health, healthProblem, metrics, retryS }, history) {
    if (healthProblem instanceof UnreachableError)
      return ["bad", "No answer", `The service does not answer. Trying again in ${count(retryS)} s …`];
    if (healthProblem) return ["bad", "Not healthy", inWords(healthProblem)];
    const stuck = metrics?.queue?.lanes_stuck;
    const [level, words, explanation] = PHASES[health?.status] ?? [
      "warn",
      String(health?.status ?? "Unknown"),
      "This page does not know this state.",
    ];
    if (stuck > 0)
      return [
        "bad",
        "Stuck",
        `${count(stuck)} of ${count(metrics.queue.lanes)} inference threads are in a run that does not end. Restart the service.`,
      ];
    const workers = health?.workers;
    if (level === "ok" && workers && workers.ready < workers.number)
      return ["warn", "Healthy in part", `${count(workers.ready)} of ${count(workers.number)} workers accept work.`];
    const queue = metrics?.backlog?.interactive;
    if (level === "ok" && queue && queue.limit_seconds > 0 && queue.seconds / queue.limit_seconds > 0.8)
      return ["warn", "Busy", "The queue is nearly full: more work is refused."];
    if (level !== "ok" || !metrics) return [level, words, explanation];
    const [failed, refused] = [history.latest("minute:service"), history.latest("minute:refused")];
    if (failed > 0) return ["warn", "Healthy", `${explanation} ${requests(failed)} failed in the last minute.`];
    if (refused > 0)
      return ["warn", "Refusing work", `${requests(refused)} got a 503 in the last minute; the reasons are below.`];
    return [level, words, explanation];
  }

  #writeNotices(report) {
    const notices = [];
    const problem = report.metricsProblem;
    if (report.healthProblem instanceof UnreachableError) {
      notices.push([
        "bad",
        "The figures continue when it is back.",
        inWords(report.healthProblem),
        ["Try now", () => this.#live.askNow()],
      ]);
    } else if (problem instanceof ServiceError && problem.wantsKey) {
      notices.push(["warn", "The figures need a key.", whyKey(problem), ["Enter a key", () => this.#api.enterKey()]]);
    } else if (problem instanceof ServiceError && problem.code === "metrics-disabled") {
      notices.push([
        "info",
        "Metrics are turned off.",
        `${inWords(problem)} Health, models and the Playground work all the same.`,
      ]);
    } else if (problem) {
      notices.push([
        "warn",
        "The figures could not be read.",
        inWords(problem),
        ["Try now", () => this.#live.askNow()],
      ]);
    }
    if (report.t - this.#restartedAt < RESTART_SHOWN_S)
      notices.push([
        "info",
        `The service was restarted at ${timeOfDay(this.#restartedAt)}.`,
        "Its counters start at 0 again; a dashed line marks the restart in the charts.",
      ]);
    const shown = JSON.stringify(notices);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#notices.replaceChildren(
      ...notices.map(([level, title, words, action]) =>
        h(
          "div",
          { class: "notice", "data-level": level, role: "status" },
          h("div", {}, h("p", { class: "notice-title" }, title), h("p", {}, words)),
          action ? h("button", { class: "button", type: "button", click: action[1] }, action[0]) : null,
        ),
      ),
    );
  }

  #writeTiles(metrics, history) {
    this.tiles.hidden = !history.times.length;
    const busiest = Object.entries(metrics?.endpoints ?? {})
      .filter(([name]) => name.startsWith("POST "))
      .sort(([, a], [, b]) => b.requests - a.requests)[0];
    const cache = metrics?.result_cache;
    const queue = metrics?.queue;
    const write = (name, value, unit, note) => {
      const { figure, small, label } = this.#tiles.get(name);
      setText(figure, value);
      setText(small, value === NONE ? "" : unit);
      setText(label, note ?? "");
    };
    const rate = (name) => amount(history.latest(name));
    write(
      "requests",
      rate("requests"),
      "/s",
      metrics ? `${count(metrics.in_flight)} in flight`.replace(`${NONE} in flight`, "") : "",
    );
    write("texts", rate("texts"), "/s", isNumber(history.latest("tokens")) ? `${rate("tokens")} tokens/s` : "");
    const [latency, unit] = milliseconds(busiest?.[1]?.latency_ms?.p95).split(" ");
    write("latency", latency, unit ?? "", busiest?.[0] ?? (metrics ? "no requests yet" : ""));
    const [waiting, waitingUnit] = seconds(queue?.waiting_seconds).split(" ");
    write(
      "waiting",
      waiting,
      waitingUnit ?? "",
      isNumber(queue?.waiting_texts) ? `${count(queue.waiting_texts)} texts` : "",
    );
    const [busy] = percent(history.latest("lanes")).split(" ");
    write(
      "lanes",
      busy,
      "%",
      isNumber(queue?.running) ? `${count(queue.running)} model ${queue.running === 1 ? "run" : "runs"}` : "",
    );
    const [hits] = percent(history.latest("hit_rate")).split(" ");
    write(
      "cache",
      hits,
      "%",
      cache ? (cache.limit_bytes ? `${bytes(cache.bytes)} of ${bytes(cache.limit_bytes)}` : "turned off") : "",
    );
  }

  #tile(name, label) {
    const figure = h("span", { class: "tile-figure number" }, NONE);
    const small = h("span", { class: "tile-unit" });
    const note = h("dd", { class: "tile-note number" });
    this.#tiles.set(name, { figure, small, label: note });
    return h("div", { class: "tile" }, h("dt", {}, label), h("dd", { class: "tile-value" }, figure, small), note);
  }
}
