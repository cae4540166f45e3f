/** A canvas that follows its width and the theme, and reports pointers and keys. */

import { shownTheme } from "./colours.js";
import { h } from "./dom.js";
import { color } from "./state.js";

/**
 * Properties: `label` (for screen readers), `height(width)` in CSS pixels, `draw(context, width, height)`,
 * `point(x, y)` for pointers, `leave()` when they leave, and `key(event)`, which returns whether it used the key.
 */
export function plot({ label, describedBy, height, draw, point, leave, key }) {
  const canvas = h("canvas", {
    class: "pg-canvas", tabindex: 0, role: "application", "aria-label": label, "aria-describedby": describedBy,
  });
  const box = h("div", { class: "pg-plot" }, canvas);

  function paint() {
    const width = Math.floor(box.clientWidth);
    if (width === 0) return;
    const tall = Math.floor(height(width));
    const ratio = Math.min(devicePixelRatio || 1, 3);
    const [pixels, lines] = [Math.round(width * ratio), Math.round(tall * ratio)];
    if (canvas.width !== pixels || canvas.height !== lines) {
      canvas.width = pixels;
      canvas.height = lines;
      canvas.style.height = `${tall}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, tall);
    draw(context, width, tall);
  }

  const redraw = () => paintSoon(paint);
  const report = (event) => {
    const bounds = canvas.getBoundingClientRect();
    point(event.clientX - bounds.left, event.clientY - bounds.top);
  };
  canvas.addEventListener("pointermove", report);
  canvas.addEventListener("pointerdown", report);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave?.());
  canvas.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && key(event)) event.preventDefault();
  });
  new ResizeObserver(redraw).observe(box);
  return { box, canvas, redraw };
}

/** Canvases that wait to be painted: one in each frame, so that none of them is late. */
const waiting = new Set();

function paintSoon(paint) {
  if (waiting.has(paint)) return;
  waiting.add(paint);
  if (waiting.size === 1) requestAnimationFrame(paintNext);
}

function paintNext() {
  const [paint] = waiting;
  waiting.delete(paint);
  if (waiting.size > 0) requestAnimationFrame(paintNext);
  paint();
}

let family = "";
const colours = new Map();

/** Font of canvases: that of the page. Asked for once, since asking makes the browser lay the page out. */
export function font(size, weight = 400) {
  family ||= getComputedStyle(document.body).fontFamily;
  return `${weight} ${size}px ${family}`;
}

/** A colour of style.css, such as `--text`, in the theme that is shown. Remembered, for the same reason. */
export function ink(token) {
  const key = `${shownTheme()} ${token}`;
  if (!colours.has(key)) colours.set(key, color(token));
  return colours.get(key);
}
