// The Playground: embed texts and look at what comes back.

import { h } from "./dom.js";
import { embed } from "./embedding.js";
import { pca } from "./pca.js";
import { columns, planeMap, search, similarity } from "./playground-charts.js";
import { codeAndFiles } from "./playground-code.js";
import { form } from "./playground-form.js";
import { textList } from "./playground-texts.js";
import { counted } from "./playground-words.js";
import { inSlices } from "./slices.js";
import { cosines, extremePairs, sharedNearest, unitVectors, valuesOf } from "./vectors.js";

const PAIRS = 5; // as many most similar ones, and as many least similar ones, are listed

/** Fill `root`, once. `api` is the module api.js, `state` the page's state (state.js). */
export function mount(root, { api, state }) {
  const results = h("div", { class: "stack pg-results", hidden: true });
  const stale = h("p", { class: "notice", role: "status", hidden: true }, "Texts or options have changed since. Embed again to see them here.");
  let running = null;
  let shown = null;

  const inputs = form({
    api,
    submit: run,
    cancel: () => running?.abort(),
    changed: () => {
      stale.hidden = shown === null || shown.key === requestKey();
    },
  });
  root.replaceChildren(h("div", { class: "stack" }, h("h2", { class: "visually-hidden" }, "Playground"), inputs.box, stale, results));

  function requestKey() {
    return JSON.stringify([inputs.texts().texts, inputs.sides()]);
  }

  async function loadModels() {
    try {
      const { available_models: list, cached_models: loaded, required_models: required } = await api.json("models", { ask: "once" });
      await Promise.all(inputs.settings.map((settings) => settings.show({ list, loaded, preferred: required[0] })));
    } catch (error) {
      for (const settings of inputs.settings) settings.showFailure(error, loadModels);
    }
  }

  let areModelsLoaded = false;
  state.on("view", (view) => {
    if (view !== "playground" || areModelsLoaded) return;
    areModelsLoaded = true;
    loadModels();
  });
  api.onKeyChange(() => {
    if (areModelsLoaded) loadModels();
    shown?.refresh();
  });
  state.on("theme", () => shown?.redraw());

  async function run() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    inputs.clearErrors();
    const { texts } = inputs.texts();
    const key = requestKey();
    if (texts.length === 0) {
      inputs.showError({ words: "Enter at least one text.", problem: { field: "texts" } });
      return;
    }
    const chosen = inputs.sides();
    const sides = [];
    try {
      for (const { letter, options } of chosen) {
        const report = (done, words) => inputs.showProgress((sides.length * texts.length + done) / (chosen.length * texts.length), words || `${done.toLocaleString("en")} of ${counted(texts.length, "text")} …`);
        report(0, "");
        const result = await embed(api, texts, options, { signal: mine.signal, report }).catch((error) => {
          error.side = letter;
          throw error;
        });
        sides.push(await analysed({ ...result, letter, dtype: options.dtype ?? "float32" }, mine.signal));
      }
      const agreement = sides.length > 1 ? await inSlices(sharedNearest(sides[0].cosines, sides[1].cosines, texts.length), mine.signal) : null;
      mine.signal.throwIfAborted();
      shown?.leave();
      shown = { key, ...show(texts, sides, agreement) };
      stale.hidden = true;
      inputs.showProgress(null, "Done.");
    } catch (error) {
      if (running !== mine) return; // a newer request has taken over
      inputs.showProgress(null, mine.signal.aborted ? `Cancelled.${shown ? " Below are the results from before." : ""}` : "");
      if (!mine.signal.aborted) inputs.showError(error, error.side);
    }
  }

  /** Show the results. Returns `redraw` and `refresh` (after changes of theme and key), and `leave`: ends what still runs. */
  function show(texts, sides, agreement) {
    const leaving = new AbortController();
    const list = textList({ api, texts, sides, signal: leaving.signal });
    const code = codeAndFiles({ api, sides, texts });
    const redraws = [list.redraw];
    const charts = (make) => {
      const made = new Map();
      return columns(sides, (side) => {
        const onRead = (what) => made.forEach((other, of) => of !== side && other.show(what));
        const chart = make(side, texts, onRead);
        made.set(side, chart);
        redraws.push(chart.redraw);
        return chart.parts;
      });
    };
    const embedQuery = async (side, query, signal) => {
      const answer = await embed(api, [query], { ...side.options, input_type: "query" }, { signal });
      return unitVectors([valuesOf(answer.bytes[0], side.dtype, answer.dimension)])[0];
    };
    results.replaceChildren(
      h("div", { class: "pg-summary" }, ...sides.map((side) => summary(side, sides))),
      texts.length < 2
        ? card("Similarity and map", "Add a second text to compare it with this one.")
        : h("div", { class: "pg-pair-of-cards", "data-sides": sides.length },
          card("Similarity", agreement === null ? "Cosine of each pair of texts." : agreementWords(agreement, texts.length), charts(similarity)),
          card("Map", "Texts of similar meaning are close to each other.", charts(planeMap))),
      card("Search", "Ranks the texts by their cosine to a query, which is sent with the input type “query”.", search({ api, sides, texts, embedQuery, signal: leaving.signal })),
      card("Tokens and vectors", "Each piece is a token. Below it, the vector: one column per number, blue above zero, orange below.", list.box),
      card("Use it", "The same request from a program, and these vectors as files.", code.box),
    );
    results.hidden = false;
    return { leave: () => leaving.abort(), refresh: code.refresh, redraw: () => redraws.forEach((redraw) => redraw()) };
  }
}

/** A result with all that is drawn of it. Computed in slices: 500 texts take longer than a frame. */
async function analysed(result, signal) {
  const count = result.texts.length;
  const values = await inSlices(decoded(result), signal);
  const units = unitVectors(values);
  const matrix = await inSlices(cosines(units), signal);
  const plane = await inSlices(pca(matrix, count), signal);
  const pairs = await inSlices(extremePairs(matrix, count, PAIRS), signal);
  return { ...result, values, units, cosines: matrix, plane, pairs };
}

function* decoded({ bytes, dtype, dimension }) {
  const values = [];
  for (const vector of bytes) {
    values.push(valuesOf(vector, dtype, dimension));
    yield;
  }
  return values;
}

function card(title, words, ...children) {
  return h("section", { class: "card pg-card" }, h("h2", {}, title), h("p", { class: "hint" }, words), ...children);
}

function agreementWords(shared, count) {
  return `Cosine of each pair of texts. A and B agree on the nearest neighbour of ${shared.toLocaleString("en")} of ${counted(count, "text")}.`;
}

/** One line about a result: sizes, and what the headers of the answers say. */
function summary(side, sides) {
  const cut = side.truncated.filter(Boolean).length;
  const facts = [
    sides.length > 1 ? `${side.letter}: ${side.model}` : side.model,
    counted(side.texts.length, "text"),
    `${side.dimension} dimensions, ${side.dtype}`,
    counted(side.tokens.reduce((sum, tokens) => sum + tokens, 0), "token"),
    cut ? `${counted(cut, "text")} cut` : "",
    side.cache?.hit ? `${side.cache.hit.toLocaleString("en")} from the cache` : "",
    `${Math.round(side.milliseconds).toLocaleString("en")} ms in the service${timingWords(side.timing)}`,
  ];
  return h("p", { class: "hint" }, facts.filter(Boolean).join(" · "));
}

function timingWords(timing) {
  const parts = Object.entries(timing).filter(([name]) => name !== "total").map(([name, ms]) => `${name} ${ms < 10 ? ms.toFixed(1) : Math.round(ms)}`);
  return parts.length ? ` (${parts.join(", ")})` : "";
}
