// The Overview: what the service does now, and has done since this page was opened.

import { ChartCard } from "./charts.js";
import { h } from "./dom.js";
import * as cards from "./overview-cards.js";
import { Errors } from "./overview-errors.js";
import { Models } from "./overview-models.js";
import { Tables } from "./overview-tables.js";
import { Status } from "./overview-status.js";
import { Live } from "./live.js";
import { History, KINDS, LONGEST_INTERVAL_S, isRestart, isWork, sampleOf } from "./samples.js";

const WINDOWS = [
  [300, "5 min"],
  [900, "15 min"],
  [3600, "1 h"],
];
const SHORTEST_WINDOW_S = 60;

/** Fill `root`, once. `api` is the module api.js, `state` the page's state (state.js). */
export function mount(root, { api, state }) {
  new Overview(root, api, state).start();
}

class Overview {
  #api;
  #state;
  #live = new Live();
  #history = new History();
  #before = null;
  #windowS = WINDOWS[0][0];
  #route = "";
  #charts;
  #latency;
  #parts;
  #figures;

  constructor(root, api, state) {
    this.#api = api;
    this.#state = state;
    const routes = h("select", {
      class: "input small",
      "aria-label": "Route of the latency chart",
      change: (event) => this.#showRoute(event.target.value),
    });
    this.routes = routes;
    this.#latency = new ChartCard({ ...cards.LATENCY, series: cards.latencySeries(""), controls: [routes] });
    this.#charts = [
      new ChartCard(cards.THROUGHPUT),
      new ChartCard(cards.TOKENS),
      this.#latency,
      new ChartCard(cards.STAGES),
      new ChartCard(cards.BACKLOG),
      new ChartCard(cards.LANES),
      new ChartCard(cards.CACHE),
      new ChartCard(cards.CONNECTIONS),
      new ChartCard(cards.ERRORS),
    ];
    const status = new Status({ api, live: this.#live });
    const errors = new Errors();
    const models = new Models(api);
    const tables = new Tables();
    this.#parts = [status, errors, models, tables];
    this.#figures = h(
      "div",
      { class: "stack figures" },
      section(
        "Live",
        this.#windowControl(),
        h(
          "div",
          { class: "grid charts" },
          this.#charts.map((chart) => chart.element),
        ),
      ),
      section("Errors and refusals", null, errors.element),
    );
    root.append(
      h(
        "div",
        { class: "stack overview" },
        h("h2", { class: "visually-hidden" }, "Overview"),
        status.element,
        this.#figures,
        section("Models in memory", null, models.element),
        tables.element,
      ),
    );
  }

  start() {
    this.#live.addEventListener("report", () => this.#take(this.#live.report));
    this.#state.on("theme", () => this.#charts.forEach((chart) => chart.redraw()));
    this.#state.on("view", () => this.#draw());
    this.#live.start();
    this.#askInfo();
  }

  async #askInfo() {
    try {
      this.#state.set("info", await this.#api.json("", { ask: "never" }));
    } catch {
      // The header then has no version; the health in words says why.
    }
  }

  #take(report) {
    const { metrics, t } = report;
    const before = this.#before;
    if (metrics) {
      const restarted = before !== null && isRestart(metrics, before.metrics);
      const isGap = before !== null && t - before.t > LONGEST_INTERVAL_S;
      if (isGap) this.#history.push(t - 0.001, {}); // the lines end there, instead of crossing what was not seen
      const sample = sampleOf(
        metrics,
        isGap && !restarted ? null : (before?.metrics ?? null),
        before ? t - before.t : 0,
      );
      for (const kind of KINDS)
        sample[`minute:${kind}`] = this.#history.sumSince(`errors:${kind}`, t - 60, sample[`errors:${kind}`]);
      this.#history.push(t, sample);
      if (restarted) this.#history.restarts.push(t);
      this.#before = { t, metrics };
    }
    if (!metrics && this.#history.times.length) this.#history.push(t, {});
    if (report.health && (this.#state.info === null || isNewProcess(report))) this.#askInfo();
    for (const part of this.#parts) attempt(() => part.update(report, before?.metrics ?? null, this.#history));
    attempt(() => this.#updateRoutes(metrics));
    this.#state.set("health", this.#parts[0].health);
    this.#draw(report);
  }

  #draw(report = this.#live.report) {
    if (!report || this.#state.view !== "overview") return;
    const neverSeen = this.#before === null && report.metricsProblem !== null;
    this.#figures.hidden = neverSeen;
    const broken = !report.metrics && !neverSeen && !this.#history.times.length ? "No figures." : null;
    const end = this.#history.times.at(-1) ?? report.t;
    // The first figures fill the charts instead of a thin strip at their end.
    const from = end - Math.min(this.#windowS, Math.max(SHORTEST_WINDOW_S, end - (this.#history.times[0] ?? end)));
    for (const chart of this.#charts) chart.update(this.#history, from, broken);
  }

  #windowControl() {
    return h(
      "fieldset",
      { class: "segments" },
      h("legend", { class: "visually-hidden" }, "Time shown"),
      WINDOWS.map(([length, words]) =>
        h(
          "label",
          {},
          h("input", {
            type: "radio",
            name: "window",
            value: length,
            checked: length === this.#windowS,
            change: () => {
              this.#windowS = length;
              this.#draw();
            },
          }),
          h("span", {}, words),
        ),
      ),
    );
  }

  // The route of the latency chart: the busiest one, unless somebody has chosen another.
  #updateRoutes(metrics) {
    if (!metrics?.endpoints) return;
    const names = Object.keys(metrics.endpoints).sort(
      (a, b) => isWork(b) - isWork(a) || metrics.endpoints[b].requests - metrics.endpoints[a].requests,
    );
    const busiest = names.find(isWork) ?? "";
    const wanted = ["", ...names.toSorted()];
    const options = [...this.routes.options].map((option) => option.value);
    if (wanted.join("\n") !== options.join("\n")) {
      const chosen = this.routes.value;
      this.routes.replaceChildren(...wanted.map((name) => h("option", { value: name }, name || "Busiest route")));
      this.routes.value = wanted.includes(chosen) ? chosen : "";
    }
    const shown = this.routes.value || busiest || this.#route;
    if (shown !== this.#route) this.#setRoute(shown);
  }

  #showRoute(name) {
    if (name) this.#setRoute(name);
    else this.#updateRoutes(this.#before?.metrics);
    this.#draw();
  }

  #setRoute(name) {
    this.#route = name;
    this.#latency.setSeries(cards.latencySeries(name));
  }
}

function isNewProcess(report) {
  return report.health.uptime_seconds < 5;
}

/** Update a part of the page; a defect in one leaves the others alone. */
function attempt(update) {
  try {
    update();
  } catch (error) {
    console.error(error);
  }
}

function section(title, control, ...content) {
  return h("section", { class: "section" }, h("div", { class: "section-head" }, h("h2", {}, title), control), content);
}
