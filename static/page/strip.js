/** A vector as a strip of colours: one column per number, from negative to positive. */

import { diverging, shownTheme, step } from "./colours.js";
import { h } from "./dom.js";
import { score } from "./playground-words.js";

/** A canvas of `values`; colours end at three times the usual size of a number. */
export function strip(values, label) {
  let [low, high, squares] = [Infinity, -Infinity, 0];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
    squares += value * value;
  }
  const limit = 3 * Math.sqrt(squares / values.length) || 1;
  const canvas = h("canvas", {
    class: "pg-strip", width: values.length, height: 1, role: "img",
    "aria-label": `${label}: ${values.length} values from ${score(low)} to ${score(high)}`,
  });
  const redraw = () => {
    const colours = diverging(shownTheme());
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(values.length, 1);
    values.forEach((value, i) => pixels.data.set([...colours[step(value, -limit, limit)], 255], 4 * i));
    context.putImageData(pixels, 0, 0);
  };
  canvas.addEventListener("pointermove", (event) => {
    const bounds = canvas.getBoundingClientRect();
    const place = Math.floor(((event.clientX - bounds.left) / bounds.width) * values.length);
    const index = Math.max(0, Math.min(values.length - 1, place));
    canvas.title = `number ${index + 1}: ${values[index].toPrecision(4)}`;
  });
  redraw();
  return { canvas, redraw };
}
