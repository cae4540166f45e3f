/** What the vectors say: similarity of pairs, the map, and the search. One column per set of options. */

import { h } from "./dom.js";
import { heatMap } from "./heatmap.js";
import { place } from "./pca.js";
import { beginning, newId, score } from "./playground-words.js";
import { scatter } from "./scatter.js";
import { cosinesTo, neighbours, ranked } from "./vectors.js";

const NEIGHBOURS = 5;
const HITS = 10;
const SHOWN_CHARACTERS = 160;

/** A card with a column per side; `build(side)` fills one. */
export function columns(sides, build) {
  return h("div", { class: "pg-columns", "data-sides": sides.length }, ...sides.map((side) => h("section", { class: "pg-column", "aria-label": nameOf(side, sides) },
    sides.length > 1 ? h("h3", { class: "pg-column-name" }, h("span", { class: "pg-letter" }, side.letter), nameOf(side, [])) : null,
    ...build(side))));
}

export function nameOf(side, sides) {
  const short = side.model.split("/").pop();
  return [sides.length > 1 ? `${side.letter}:` : "", short, `${side.dimension} × ${side.dtype}`, side.options.input_type ?? ""].filter(Boolean).join(" ");
}

/**
 * The heat map of one side with the pair that is read, and the tables of pairs. Returns `parts`, `redraw` and `show`;
 * `onRead(pair)` is called when the user reads a pair here, so that the other side can show it as well.
 */
export function similarity(side, texts, onRead) {
  const readout = h("div", { class: "pg-readout" });
  const spoken = h("p", { class: "visually-hidden", "aria-live": "polite" });
  const { cosines, pairs } = side;
  const count = texts.length;
  const idle = () => readout.replaceChildren(h("p", { class: "hint" }, "Point at a pair, or use the arrow keys."));
  const map = heatMap({
    cosines, count, label: `Similarity of ${count} texts, as a map of colours`,
    onPair(pair, by) {
      if (by !== "other") onRead(pair);
      if (!pair) return idle();
      const [a, b] = pair;
      const cosine = cosines[a * count + b];
      readout.replaceChildren(
        h("p", { class: "pg-pair-score number" }, score(cosine)),
        h("div", { class: "pg-pair" }, numbered(a, texts), numbered(b, texts)));
      if (by === "key") spoken.textContent = `Texts ${a + 1} and ${b + 1}: ${score(cosine)}. ${beginning(texts[a], 60)} / ${beginning(texts[b], 60)}`;
    },
  });
  idle();
  const tables = h("div", { class: "pg-pairs" }, pairTable("Most similar", pairs.best, texts), pairs.worst.length ? pairTable("Least similar", pairs.worst, texts) : null);
  return { parts: [map.box, readout, spoken, tables], redraw: map.redraw, show: map.show };
}

function numbered(index, texts) {
  return h("p", { class: "pg-line" }, h("span", { class: "pg-number" }, String(index + 1)), h("bdi", { class: "pg-clip" }, beginning(texts[index], SHOWN_CHARACTERS)));
}

function pairTable(caption, pairs, texts) {
  return h("table", { class: "table pg-pair-table" },
    h("caption", {}, caption),
    h("thead", { class: "visually-hidden" }, h("tr", {}, h("th", { scope: "col" }, "Cosine"), h("th", { scope: "col" }, "Texts"))),
    h("tbody", {}, ...pairs.map(({ a, b, score: cosine }) => h("tr", {},
      h("td", { class: "pg-score number" }, score(cosine)),
      h("td", {}, numbered(a, texts), numbered(b, texts))))));
}

/** The 2-D map of one side with the neighbours of the chosen text; as `similarity`, with texts in place of pairs. */
export function planeMap(side, texts, onRead) {
  const { cosines, plane } = side;
  const near = h("div", { class: "pg-near" });
  const spoken = h("p", { class: "visually-hidden", "aria-live": "polite" });
  const nearestTo = (index) => neighbours(cosines, texts.length, index, NEIGHBOURS);
  const idle = () => near.replaceChildren(h("p", { class: "hint" }, "Point at a text, or use the arrow keys, to see its nearest neighbours."));
  const map = scatter({
    x: plane.x, y: plane.y, texts, nearestTo, label: `Map of ${texts.length} texts`,
    onChoice(index, by) {
      if (by !== "other") onRead(index);
      if (index === null) return idle();
      const entries = nearestTo(index);
      near.replaceChildren(h("div", { class: "pg-chosen" }, numbered(index, texts)), scoreList(entries, texts, "Nearest neighbours"));
      if (by === "key") spoken.textContent = `Text ${index + 1}: ${beginning(texts[index], 80)}. Nearest: ${entries.slice(0, 2).map((entry) => `${beginning(texts[entry.index], 60)}, ${score(entry.score)}`).join("; ") || "none"}.`;
    },
  });
  idle();
  const shares = plane.explained.map((share) => `${Math.round(100 * share)} %`);
  const words = `Principal components: the horizontal direction holds ${shares[0]} of the variance, the vertical one ${shares[1]}. Distances are approximate; scores are exact.`;
  side.showQuery = map.showQuery;
  return { parts: [map.box, h("p", { class: "hint" }, words), near, spoken], redraw: map.redraw, show: map.show };
}

/** A list of texts with their scores as numbers and bars. */
function scoreList(entries, texts, label) {
  return h("ol", { class: "pg-scores", "aria-label": label }, ...entries.map(({ index, score: cosine }) => h("li", {},
    h("span", { class: "pg-score number" }, score(cosine)),
    h("meter", { class: "pg-meter", min: 0, max: 1, value: Math.max(0, Math.min(1, cosine)), "aria-hidden": "true" }),
    numbered(index, texts))));
}

/**
 * The search box. `embedQuery(side, query, signal)` resolves to a unit vector. The answer of an older search never
 * replaces a newer one.
 */
export function search({ api, sides, texts, embedQuery, signal }) {
  const input = h("input", { class: "input", id: newId("query"), type: "search", autocomplete: "off", spellcheck: "false", dir: "auto", placeholder: "Search these texts" });
  const error = h("p", { class: "field-error", id: newId("query-error"), role: "alert" });
  const status = h("p", { class: "hint", "aria-live": "polite" });
  const found = h("div", {});
  input.setAttribute("aria-describedby", error.id);
  let controller = null;

  async function run(event) {
    event.preventDefault();
    controller?.abort();
    error.textContent = "";
    const query = input.value;
    if (!query.trim()) {
      error.textContent = "Enter what to search for.";
      return;
    }
    controller = new AbortController();
    const mine = AbortSignal.any([signal, controller.signal]);
    status.textContent = "Searching …";
    try {
      const answers = [];
      for (const side of sides) answers.push(cosinesTo(await embedQuery(side, query, mine), side.units));
      mine.throwIfAborted();
      found.replaceChildren(columns(sides, (side) => {
        const scores = answers[sides.indexOf(side)];
        side.showQuery?.(place(side.plane, scores));
        return [scoreList(ranked(scores, HITS), texts, `Results ${side.letter}`)];
      }));
      const star = sides[0].showQuery ? " The query is the star on the map." : "";
      status.textContent = `The ${Math.min(HITS, texts.length)} best of ${texts.length.toLocaleString("en")}.${star}`;
    } catch (failure) {
      if (mine.aborted) return;
      status.textContent = "";
      error.textContent = api.inWords(failure).replace(/^texts\[\d+\]: /, "");
    }
  }

  return h("div", { class: "pg-flow" },
    h("form", { class: "pg-search", role: "search", submit: run },
      h("label", { for: input.id, class: "visually-hidden" }, "Search these texts"), input,
      h("button", { class: "button primary", type: "submit" }, "Search")),
    error, status, found);
}
