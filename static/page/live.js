// Asks the service every two seconds how it does. Pauses in a hidden tab; asks less often while nothing answers.

import { isRecord, tidied } from "./samples.js";
import { ServiceError, UnreachableError, inWords, json, offerDialog, onKeyChange } from "./api.js";

export const INTERVAL_S = 2;
const LONGEST_PAUSE_S = 15;
const PAUSE_WITHOUT_METRICS_S = 15;
const TIMEOUT_MS = 8000;

/**
 * Events: "report" after each round. `report` is then
 * {t, health, healthProblem, metrics, metricsProblem, retryS}: what was answered, or the error instead.
 */
export class Live extends EventTarget {
  report = null;
  #failures = 0;
  #timer = 0;
  #running = false;
  #metricsProblem = null;
  #metricsAfter = 0;

  start() {
    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(this.#timer) : this.askNow()));
    onKeyChange(() => this.askNow());
    this.askNow();
  }

  /** Ask at once, metrics included. */
  askNow() {
    this.#metricsAfter = 0;
    clearTimeout(this.#timer);
    this.#round();
  }

  async #round() {
    if (this.#running) return;
    this.#running = true;
    const report = {
      t: Date.now() / 1000,
      health: null,
      healthProblem: null,
      metrics: null,
      metricsProblem: null,
      retryS: INTERVAL_S,
    };
    try {
      await Promise.all([this.#askHealth(report), this.#askMetrics(report)]);
    } finally {
      this.#running = false;
    }
    this.#failures = report.healthProblem instanceof UnreachableError ? this.#failures + 1 : 0;
    if (this.#failures) report.retryS = Math.min(INTERVAL_S * 2 ** (this.#failures - 1), LONGEST_PAUSE_S);
    this.report = report;
    this.dispatchEvent(new Event("report"));
    if (!document.hidden) this.#timer = setTimeout(() => this.#round(), report.retryS * 1000);
  }

  async #askHealth(report) {
    try {
      report.health = await json("health", { ask: "never", timeoutMs: TIMEOUT_MS });
    } catch (error) {
      // A service that starts or drains answers with 503; a proxy without a service behind it does, too.
      report.healthProblem =
        error instanceof ServiceError && error.status >= 502 && !error.code
          ? new UnreachableError(inWords(error))
          : error;
    }
  }

  async #askMetrics(report) {
    if (report.t < this.#metricsAfter) {
      report.metricsProblem = this.#metricsProblem;
      return;
    }
    try {
      const metrics = await json("metrics", { ask: "never", timeoutMs: TIMEOUT_MS });
      if (!isRecord(metrics)) throw new UnreachableError("The answer of /metrics is not what this page expects.");
      report.metrics = tidied(metrics);
      report.t = Date.now() / 1000;
    } catch (error) {
      report.metricsProblem = error;
      if (error instanceof ServiceError && error.wantsKey) offerDialog(error); // health goes on meanwhile
      // What a key or a setting forbids will not change in two seconds.
      if (error instanceof ServiceError && error.status < 500) this.#metricsAfter = report.t + PAUSE_WITHOUT_METRICS_S;
    }
    this.#metricsProblem = report.metricsProblem;
  }
}
