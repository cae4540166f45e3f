// Models in memory: which were there when, since this page was opened, and what each has done.

import { h, setText } from "./dom.js";
import { NONE, ago, bytes, count, duration, moment, timeOfDay } from "./figures.js";

const DETAILS_EVERY_S = 10;
/** Why a model was removed from memory, by the reason in /metrics. */
const EVICTION_WORDS = {
  ttl: "not used for long",
  capacity: "place needed: MAX_CACHED_MODELS",
  memory: "memory needed: MODEL_MEMORY_BUDGET",
  reload: "its files have changed",
};

export class Models {
  #api;
  #rows = new Map();
  #details = new Map();
  #askedT = 0;
  #openedT = null;
  #list = h("div", { class: "models" });
  #message = h("p", { class: "muted empty" }, "Waiting for the first figures …");
  #summary = h("p", { class: "hint number" });
  #axis = h("div", { class: "timeline-axis muted number", "aria-hidden": "true" }, h("span"), h("span"));
  #loads = h("p", { class: "hint number" });

  constructor(api) {
    this.#api = api;
    this.element = h(
      "article",
      { class: "card models-card" },
      this.#summary,
      this.#message,
      this.#axis,
      this.#list,
      this.#loads,
    );
  }

  update({ t, health, metrics }) {
    const info = health?.cache_info ?? metrics?.cache_info;
    this.#openedT ??= t;
    if (!info) {
      if (!health && !metrics) for (const row of this.#rows.values()) [row.spans.at(-1).open, row.isKnown] = [false, false]; // not seen, so not claimed
      return this.#draw(t, metrics);
    }
    const loaded = Array.isArray(info.cached_models) ? info.cached_models : [];
    for (const name of loaded) if (!this.#rows.has(name)) this.#rows.set(name, this.#makeRow(name));
    for (const [name, row] of this.#rows) {
      row.isLoaded = loaded.includes(name);
      row.isKnown = true;
      const last = row.spans.at(-1);
      if (row.isLoaded && last?.open) last.to = t;
      else if (row.isLoaded) row.spans.push(this.#span(row, t));
      else if (last?.open) last.open = false;
    }
    const limit = info.max_cached ? ` of at most ${count(info.max_cached)}` : "";
    const ttl = info.cache_ttl
      ? ` A model that is not used for ${duration(info.cache_ttl)} is unloaded, unless it is required.`
      : "";
    setText(this.#summary, `${count(loaded.length)}${limit} in memory.${ttl}`);
    setText(this.#message, "No model is in memory. The first request for one loads it.");
    this.#message.hidden = this.#rows.size > 0;
    if (t - this.#askedT > DETAILS_EVERY_S) {
      this.#askedT = t;
      for (const name of loaded) this.#askDetails(name);
    }
    return this.#draw(t, metrics);
  }

  async #askDetails(name) {
    try {
      this.#details.set(
        name,
        await this.#api.json(`models/${name.split("/").map(encodeURIComponent).join("/")}`, { ask: "never" }),
      );
    } catch {
      this.#details.delete(name); // the row then shows what the metrics say
    }
  }

  #draw(t, metrics) {
    const lengthS = Math.max(t - this.#openedT, 1);
    for (const [name, row] of this.#rows) {
      for (const span of row.spans) {
        span.element.style.left = `${((span.from - this.#openedT) / lengthS) * 100}%`;
        span.element.style.width = `${(Math.max(span.to - span.from, lengthS / 200) / lengthS) * 100}%`;
      }
      const usage = metrics?.models?.[name];
      const details = this.#details.get(name);
      setText(row.state, row.isKnown ? (row.isLoaded ? "in memory" : "unloaded") : "not known now");
      row.state.dataset.level = row.isKnown && row.isLoaded ? "ok" : "none";
      const spans = row.spans.map(({ from, to }) => `${timeOfDay(from)} to ${timeOfDay(to)}`);
      row.track.setAttribute("aria-label", `${name} was in memory: ${spans.join(", ")}`);
      const memory = usage?.memory_bytes ?? details?.memory_bytes;
      const facts = [
        ["Last used", row.isLoaded && details?.last_used ? ago(details.last_used) : NONE],
        ["Loaded", row.isLoaded && details?.loaded_at ? moment(details.loaded_at) : NONE],
        ["Memory", row.isLoaded ? bytes(memory) : NONE],
        ["Texts", count(usage?.texts)],
        ["Tokens", count(usage?.tokens)],
        ["Truncated", count(usage?.truncated)],
      ];
      for (const [index, [, value]] of facts.entries()) setText(row.facts[index], value);
    }
    const [from, to] = this.#axis.children;
    setText(from, timeOfDay(this.#openedT));
    setText(to, timeOfDay(t));
    this.#axis.hidden = this.#rows.size === 0;
    setText(this.#loads, this.#loadWords(metrics));
  }

  #loadWords(metrics) {
    const loads = metrics?.model_loads;
    const words = [];
    if (loads?.loads) words.push(`${count(loads.loads)} being loaded`);
    if (loads?.downloads_running) words.push(`${count(loads.downloads_running)} being downloaded`);
    if (loads?.downloads_waiting) words.push(`${count(loads.downloads_waiting)} waiting to be downloaded`);
    const sums = { loads: 0, failures: 0, evictions: {} };
    for (const model of Object.values(metrics?.models ?? {})) {
      sums.loads += model?.loads ?? 0;
      sums.failures += model?.load_failures ?? 0;
      for (const [reason, number] of Object.entries(model?.evictions ?? {}))
        sums.evictions[reason] = (sums.evictions[reason] ?? 0) + number;
    }
    if (sums.loads) words.push(`${count(sums.loads)} ${sums.loads === 1 ? "load" : "loads"} since the start`);
    if (sums.failures) words.push(`${count(sums.failures)} failed`);
    for (const [reason, number] of Object.entries(sums.evictions))
      if (number) words.push(`${count(number)} unloaded (${EVICTION_WORDS[reason] ?? reason})`);
    return words.length ? `${words.join(" · ")}` : "";
  }

  #span(row, t) {
    const element = h("span", { class: "timeline-span" });
    row.track.append(element);
    return { from: t, to: t, open: true, element };
  }

  #makeRow(name) {
    const track = h("div", { class: "timeline", role: "img" });
    const state = h("span", { class: "badge" });
    const labels = ["Last used", "Loaded", "Memory", "Texts", "Tokens", "Truncated"];
    const facts = labels.map(() => h("dd", { class: "number" }, NONE));
    const element = h(
      "div",
      { class: "model" },
      h("div", { class: "model-head" }, h("h3", { class: "model-name" }, name), state),
      track,
      h(
        "dl",
        { class: "facts" },
        labels.map((label, index) => h("div", {}, h("dt", {}, label), facts[index])),
      ),
    );
    this.#list.append(element);
    return { element, track, state, facts, spans: [], isLoaded: false, isKnown: false };
  }
}
