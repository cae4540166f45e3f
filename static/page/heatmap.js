/** The similarity of all pairs as a map of colours; pointer and arrow keys read a pair. */

import { inkOn, sequential, shownTheme, step } from "./colours.js";
import { h } from "./dom.js";
import { newId, score } from "./playground-words.js";
import { font, ink, plot } from "./plot.js";

const GUTTER = 30;
const MIN_CELL_FOR_SCORES = 34;

/**
 * Returns `box` (the element), `redraw` and `show(pair)`. `cosines` is a flat matrix; `onPair(pair, by)` is called with
 * the pair `[a, b]` that is read, or null: `by` is "pointer", "key", or "other" for `show`.
 */
export function heatMap({ cosines, count, label, onPair }) {
  const [low, high] = rangeOf(cosines, count);
  const help = h("p", { class: "visually-hidden", id: newId("help") }, "Use the arrow keys to go from pair to pair. The table below lists the most and least similar pairs.");
  let pair = null;
  let image = null;
  let imageTheme = "";
  let cell = 0;

  function imageOf(theme) {
    if (image && imageTheme === theme) return image;
    image = h("canvas", { width: count, height: count });
    imageTheme = theme;
    const context = image.getContext("2d");
    const pixels = context.createImageData(count, count);
    const words = new Uint32Array(pixels.data.buffer);
    const colours = Uint32Array.from(sequential(theme), ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
    const scale = 255 / (high - low);
    for (let i = 0; i < words.length; i += 1) words[i] = colours[Math.max(0, Math.min(255, Math.round((cosines[i] - low) * scale)))];
    context.putImageData(pixels, 0, 0);
    return image;
  }

  function draw(context, width) {
    const side = width - GUTTER - 1;
    cell = side / count;
    context.imageSmoothingEnabled = cell < 1;
    context.drawImage(imageOf(shownTheme()), GUTTER, 0, side, side);
    drawScores(context);
    drawNumbers(context, side);
    if (!pair) return;
    context.strokeStyle = ink("--surface");
    context.lineWidth = 4;
    const size = Math.max(cell, 5);
    const [x, y] = [GUTTER + (pair[1] + 0.5) * cell - size / 2, (pair[0] + 0.5) * cell - size / 2];
    context.strokeRect(x, y, size, size);
    context.strokeStyle = ink("--text");
    context.lineWidth = 2;
    context.strokeRect(x, y, size, size);
  }

  function drawScores(context) {
    if (cell < MIN_CELL_FOR_SCORES) return;
    const colours = sequential(shownTheme());
    context.font = font(Math.min(13, cell / 3.1));
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let a = 0; a < count; a += 1) {
      for (let b = 0; b < count; b += 1) {
        const value = cosines[a * count + b];
        context.fillStyle = inkOn(colours[step(value, low, high)]);
        context.fillText(score(value).replace("0.", "."), GUTTER + (b + 0.5) * cell, (a + 0.5) * cell + 1);
      }
    }
  }

  function drawNumbers(context, side) {
    const every = [1, 2, 5, 10, 20, 50, 100, 200].find((size) => size * cell >= (count < 100 ? 22 : 34)) ?? 500;
    context.font = font(11);
    context.fillStyle = ink("--muted");
    for (let i = 0; i < count; i += 1) {
      if (count > 1 && (i + 1) % every !== 0 && i !== 0) continue;
      if (i === 0 && every > 1 && every * cell < 30) continue;
      const middle = (i + 0.5) * cell;
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(String(i + 1), GUTTER - 6, Math.max(6, middle));
      context.textAlign = "center";
      context.textBaseline = "top";
      context.fillText(String(i + 1), GUTTER + Math.min(Math.max(middle, 3), side - 8), side + 7);
    }
  }

  function read(next, by) {
    if (pair?.[0] === next?.[0] && pair?.[1] === next?.[1]) return;
    pair = next;
    drawn.redraw();
    onPair(pair, by);
  }

  function point(x, y) {
    const [a, b] = [Math.floor(y / cell), Math.floor((x - GUTTER) / cell)];
    read(a >= 0 && b >= 0 && a < count && b < count ? [a, b] : null, "pointer");
  }

  function key(event) {
    const page = Math.max(1, Math.round(count / 10));
    const [a, b] = pair ?? [0, 0];
    const moves = {
      ArrowUp: [a - 1, b], ArrowDown: [a + 1, b], ArrowLeft: [a, b - 1], ArrowRight: [a, b + 1],
      PageUp: [a - page, b], PageDown: [a + page, b], Home: [a, 0], End: [a, count - 1],
    };
    const next = moves[event.key];
    if (!next) return false;
    read(pair ? next.map((i) => Math.max(0, Math.min(count - 1, i))) : [0, Math.min(1, count - 1)], "key");
    return true;
  }

  const drawn = plot({
    label, describedBy: help.id, height: (width) => width - GUTTER + 23, draw, point, leave: () => read(null, "pointer"), key,
  });
  drawn.canvas.classList.add("pg-heat");
  drawn.box.append(help);
  return { box: h("div", {}, drawn.box, legend(low, high)), redraw: drawn.redraw, show: (other) => read(other, "other") };
}

/** Where the colours begin and end: the least and the largest cosine of two texts, with one digit. */
function rangeOf(cosines, count) {
  let [low, high] = [1, -1];
  for (let a = 0; a < count; a += 1) {
    for (let b = a + 1; b < count; b += 1) {
      const value = cosines[a * count + b];
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  low = Math.floor(low * 10 + 1e-6) / 10;
  high = Math.min(1, Math.ceil(high * 10 - 1e-6) / 10);
  return high - low >= 0.2 ? [low, high] : [Math.max(-1, high - 0.2), high];
}

function legend(low, high) {
  return h("div", { class: "pg-legend" },
    h("span", {}, low > -1 ? `≤ ${score(low)}` : score(low)),
    h("span", { class: "pg-ramp", "aria-hidden": "true" }),
    h("span", {}, high < 1 ? `≥ ${score(high)}` : score(high)),
    h("span", { class: "pg-legend-words" }, "cosine"));
}
