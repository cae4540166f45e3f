/** The embedded texts one by one: tokens as coloured pieces, and vectors as strips. A part at a time. */

import { h } from "./dom.js";
import { inBatches } from "./embedding.js";
import { beginning, counted } from "./playground-words.js";
import { nextTask } from "./slices.js";
import { strip } from "./strip.js";
import { piecesOf } from "./tokens.js";

const FIRST_ROWS = 12;
const MORE_ROWS = 50;
const COLOURS = 6;
const MAX_PIECE = 300;
const MAX_PLAIN = 1500;

/** `sides`: the results. `signal` ends requests when other results are shown. Returns `box` and `redraw`. */
export function textList({ api, texts, sides, signal }) {
  const list = h("ol", { class: "pg-list" });
  const problem = h("p", { class: "field-error", role: "alert" });
  const more = h("button", { class: "button", type: "button", click: showMore });
  const strips = [];
  // Options of the same model and input type see the same tokens.
  const tokenised = sides.filter((side, i) => i === 0 || keyOf(side) !== keyOf(sides[0]));
  let shown = 0;

  async function showMore() {
    const start = shown;
    const end = Math.min(texts.length, shown + (shown === 0 ? FIRST_ROWS : MORE_ROWS));
    shown = end;
    more.hidden = true;
    const rows = [];
    for (let index = start; index < end; index += 1) {
      rows.push(row(index));
      list.append(rows.at(-1).box);
      if (index % 8 === 7) await nextTask();
    }
    if (signal.aborted) return;
    more.hidden = end === texts.length;
    more.textContent = `Show ${Math.min(MORE_ROWS, texts.length - end)} more of ${(texts.length - end).toLocaleString("en")}`;
    if (start > 0) rows[0].box.focus();
    for (const side of tokenised) await showTokens(side, start, rows);
  }

  function row(index) {
    const tokens = new Map(tokenised.map((side) => [side, h("p", { class: "pg-tokens", dir: "auto" }, beginning(texts[index], MAX_PLAIN))]));
    const box = h("li", { class: "pg-text", tabindex: -1 },
      h("span", { class: "pg-number", "aria-hidden": "true" }, String(index + 1)),
      h("div", { class: "pg-text-body" }, ...sides.map((side) => {
        const drawn = strip(side.values[index], `Vector of text ${index + 1}${sides.length > 1 ? `, ${side.letter}` : ""}`);
        strips.push(drawn);
        return h("div", { class: "pg-text-side" },
          tokens.get(side),
          h("div", { class: "pg-vector" },
            sides.length > 1 ? h("span", { class: "pg-letter" }, side.letter) : null,
            drawn.canvas,
            h("span", { class: "hint pg-count" }, counted(side.tokens[index], "token"), side.truncated[index] ? ", cut" : "")));
      })));
    return { box, tokens };
  }

  async function showTokens(side, start, rows) {
    const options = { return_tokens: true, model_name: side.model };
    if (side.options.input_type) options.input_type = side.options.input_type;
    const answers = [];
    try {
      await inBatches(api, "tokenize", texts.slice(start, start + rows.length), options, {
        signal,
        take(answer) {
          for (const text of answer.texts) answers.push({ ...text, maxTokens: answer.max_tokens });
        },
      });
      for (const [i, { token_list: tokens, maxTokens }] of answers.entries()) {
        signal.throwIfAborted();
        showPieces(rows[i].tokens.get(side), piecesOf(texts[start + i], tokens, maxTokens));
        if (i % 4 === 3) await nextTask();
      }
    } catch (error) {
      if (!signal.aborted) problem.textContent = `The tokens cannot be shown. ${api.inWords(error)}`;
    }
  }

  showMore();
  return {
    box: h("div", { class: "pg-flow" }, list, problem, more),
    redraw: () => strips.forEach((drawn) => drawn.redraw()),
  };
}

function keyOf({ model, options }) {
  return JSON.stringify([model, options.input_type]);
}

/** Show the pieces, and the place of the cut if the text is longer than its box. */
function showPieces(box, pieces) {
  box.replaceChildren(...elementsOf(pieces));
  const cut = box.querySelector(".pg-cut");
  if (cut) box.scrollTop = cut.offsetTop - 0.6 * box.clientHeight;
}

/** Spans without padding, so that letters that join across tokens (as in Arabic) still do. */
function elementsOf({ pieces, cut, left }) {
  let colour = 0;
  const spans = pieces.map((piece, i) => {
    const isBeyond = cut !== null && i >= cut;
    if (piece.token === undefined) return isBeyond ? h("span", { class: "pg-beyond" }, beginning(piece.characters, MAX_PIECE)) : beginning(piece.characters, MAX_PIECE);
    colour += 1;
    const kind = piece.isSpecial ? "pg-special" : `pg-token pg-token-${colour % COLOURS}`;
    return h(piece.isSpecial ? "bdi" : "span", { class: isBeyond ? `${kind} pg-beyond` : kind, title: `${piece.token}  ·  id ${piece.id}` }, beginning(piece.characters, MAX_PIECE));
  });
  if (cut !== null) spans.splice(cut, 0, h("span", { class: "pg-cut" }, "cut: the model does not see the rest"));
  if (left) spans.push(h("span", { class: "hint" }, ` … and ${counted(left, "token")} more`));
  return spans;
}
