// A card with one live chart: uPlot draws the lines; a table beside it has the same figures as words.

import { h, setText } from "./dom.js";
import { NONE, NOT_REPORTED, count, isNumber, timeOfDay } from "./figures.js";
import { color } from "./state.js";

const HEIGHT = 168;
const AXIS_WIDTH = 52;
const PADDING = 8;
const WHOLE_STEPS = [1, 10, 100, 1000, 10_000, 100_000].flatMap((size) => [size, 2 * size, 5 * size]);
/** Of a time at the axis, in pixels, by its characters. */
const LABEL_WIDTH = { 5: 34, 8: 54 };

/**
 * One chart. `options`: title, hint, format (writes a value), series: [{name, label, token, dash}], max (of the axis;
 * without one it grows with the values), empty (words while there is no value), controls (elements beside the title).
 */
export class ChartCard {
  #options;
  #plot = null;
  #frame = h("div", { class: "chart-frame", role: "img" });
  #message = h("p", { class: "chart-message" });
  #body = h("tbody");
  #moment = h("span", { class: "chart-moment number" });
  #history = null;
  #from = 0;
  #cursor = null;
  #failed = false;

  constructor(options) {
    this.#options = options;
    this.element = h(
      "article",
      { class: "card chart-card" },
      h("div", { class: "card-head" }, h("h3", {}, options.title), ...(options.controls ?? [])),
      h("p", { class: "hint" }, options.hint),
      h("div", { class: "chart-box" }, this.#frame, this.#message),
      h(
        "table",
        { class: "table chart-table" },
        h("caption", { class: "visually-hidden" }, `${options.title}: figures`),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, this.#moment),
            h("th", { scope: "col", class: "number" }, "Now"),
            h("th", { scope: "col", class: "number" }, "Highest"),
          ),
        ),
        this.#body,
      ),
    );
    this.now = this.element.querySelector("thead th:nth-child(2)");
    this.setSeries(options.series);
    new ResizeObserver(() => this.#fit()).observe(this.#frame);
  }

  /** Draw other figures from now on. */
  setSeries(series) {
    this.#options.series = series;
    this.#body.replaceChildren(
      ...series.map(({ label, token, dash }) =>
        h(
          "tr",
          {},
          h(
            "th",
            { scope: "row" },
            h("span", { class: `swatch ${token.slice(2)}${dash ? " dashed" : ""}`, "aria-hidden": "true" }),
            label,
          ),
          h("td", { class: "number" }, NONE),
          h("td", { class: "number" }, NONE),
        ),
      ),
    );
    this.#remove();
  }

  /** Show `history` from `fromT` on. `broken`: words to show instead of the lines, if there is nothing to show. */
  update(history, fromT, broken = null) {
    this.#history = history;
    this.#from = fromT;
    try {
      this.#show(broken);
    } catch (error) {
      if (!this.#failed) console.error(error);
      this.#failed = true;
      this.#say("This chart could not be drawn. The figures below are current.");
    }
  }

  /** Draw again, with the colours of the theme of now. */
  redraw() {
    this.#remove();
    if (this.#history) this.update(this.#history, this.#from);
  }

  #show(broken) {
    const { series, empty } = this.#options;
    const history = this.#history;
    const columns = series.map(({ name }) => history.column(name));
    const start = this.#start();
    const shown = columns.map((column) => column.slice(start));
    const hasValues = shown.some((column) => column.some(isNumber));
    this.#writeTable(columns, shown);
    const isReported = series.some(({ name }) => history.has(name));
    if (broken) this.#say(broken);
    else if (!history.times.length) this.#say("Waiting for the first figures …");
    else if (!isReported && !this.#options.isOptional) this.#say(`This is ${NOT_REPORTED} of the service.`);
    else if (!hasValues) this.#say(history.times.length < 3 ? "Waiting for the first figures …" : empty);
    else this.#say("");
    if (typeof globalThis.uPlot !== "function") {
      this.#say("The charts' library could not be loaded. The figures below are current.");
      return;
    }
    const data = [history.times.slice(start), ...shown];
    this.#plot ??= this.#draw(data);
    const end = history.times.at(-1) ?? this.#from;
    this.#plot.setData(data, false);
    this.#plot.setScale("x", { min: this.#from, max: Math.max(end, this.#from + 1) });
  }

  #start() {
    return Math.max(
      0,
      this.#history.times.findIndex((t) => t >= this.#from),
    );
  }

  #say(words) {
    setText(this.#message, words);
    this.#message.hidden = !words;
    this.#frame.dataset.muted = String(Boolean(words));
  }

  #writeTable(columns, shown) {
    const { series, format } = this.#options;
    const position = this.#cursor;
    const words = [];
    for (const [index, { name, label }] of series.entries()) {
      const write = series[index].format ?? format;
      const now = columns[index].at(-1);
      const highest = shown[index].reduce(
        (most, value) => (isNumber(value) && value > most ? value : most),
        Number.NEGATIVE_INFINITY,
      );
      const cells = this.#body.rows[index].cells;
      const isKnown = this.#history.has(name);
      setText(cells[1], position === null ? (isKnown ? write(now) : NONE) : write(shown[index][position]));
      setText(cells[2], write(highest));
      words.push(isKnown ? `${label} ${isNumber(now) ? write(now) : "no value"}` : `${label} ${NOT_REPORTED}`);
    }
    setText(this.now, position === null ? "Now" : "Then");
    setText(
      this.#moment,
      position === null
        ? ""
        : `At ${timeOfDay(this.#history.times[this.#history.times.length - shown[0].length + position])}`,
    );
    this.#frame.setAttribute("aria-label", `Chart of ${this.#options.title.toLowerCase()}. Now: ${words.join(", ")}.`);
  }

  #draw(data) {
    const { series, max, format } = this.#options;
    const axis = { stroke: color("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: color("--grid"), width: 1 };
    const options = {
      width: Math.max(120, this.#frame.clientWidth),
      height: HEIGHT,
      padding: [8, PADDING, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "overview" }, points: { size: 6 } },
      scales: { x: { time: true, auto: false }, y: { range: (_, __, most) => [0, axisEnd(most, max)] } },
      axes: [
        {
          ...axis,
          grid: { show: false },
          space: 70,
          size: 24,
          values: (plot, splits) => {
            const length = splits.length > 1 && splits[1] - splits[0] < 60 ? 8 : 5;
            const end = plot.valToPos(plot.scales.x.max, "x") - LABEL_WIDTH[length] / 2 + PADDING;
            return splits.map((t) => (plot.valToPos(t, "x") > end ? "" : timeOfDay(t).slice(0, length))); // else it is cut off
          },
        },
        {
          ...axis,
          grid,
          size: AXIS_WIDTH,
          space: 32,
          incrs: format === count ? WHOLE_STEPS : undefined, // 2.5 connections would read as 3
          values: (_, splits) => splits.map((value) => format(value)),
        },
      ],
      series: [
        {},
        ...series.map(({ label, token, dash }) => ({
          label,
          stroke: color(token),
          width: 1.75,
          dash,
          points: { size: 4, show: () => false, filter: isolated },
        })),
      ],
      hooks: {
        setCursor: [
          (plot) => {
            this.#cursor = plot.cursor.idx !== null && plot.cursor.left >= 0 ? plot.cursor.idx : null;
            if (this.#history) this.#tableAtCursor();
          },
        ],
        draw: [(plot) => this.#drawRestarts(plot)],
      },
    };
    return new globalThis.uPlot(options, data, this.#frame);
  }

  #tableAtCursor() {
    const columns = this.#options.series.map(({ name }) => this.#history.column(name));
    this.#writeTable(
      columns,
      columns.map((column) => column.slice(this.#start())),
    );
  }

  #drawRestarts(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = color("--warn");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    for (const t of this.#history.restarts) {
      const x = Math.round(plot.valToPos(t, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  #fit() {
    const width = this.#frame.clientWidth;
    if (this.#plot && width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }

  #remove() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#cursor = null;
  }
}

/** The points that no line reaches, because their neighbours have no value. */
function isolated(plot, index) {
  const values = plot.data[index];
  return values.flatMap((value, at) =>
    isNumber(value) && !isNumber(values[at - 1]) && !isNumber(values[at + 1]) ? [at] : [],
  );
}

/** The upper end of an axis that shows values up to `most`: at least `max`, and never so small that noise fills it. */
function axisEnd(most, max) {
  if (!isNumber(most) || most <= 0) return max ?? 1;
  return Math.max(max ?? 0, most * 1.1);
}
