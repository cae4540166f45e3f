/** Texts as points on a plane; pointer and arrow keys choose one and show its nearest neighbours. */

import { h } from "./dom.js";
import { beginning, newId } from "./playground-words.js";
import { font, ink, plot } from "./plot.js";

const MARGIN = 22;
const REACH = 28; // pixels between the pointer and a point that it may choose
const LABEL_CHARACTERS = 26;
const MAX_LABELS = 60;
const RIGHT_TO_LEFT = /^[^\p{L}]*[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}]/u;

/**
 * Returns `box`, `redraw`, `show(index)` and `showQuery([x, y] or null)`. `x`, `y`: coordinates; `nearestTo(index)`: its neighbours, as
 * `{index, score}`; `onChoice(index, by)`: null for none; `by` is as for the heat map.
 */
export function scatter({ x, y, texts, label, nearestTo, onChoice }) {
  const help = h("p", { class: "visually-hidden", id: newId("help") }, "Use the arrow keys to go from text to text. Its nearest neighbours are listed beside the map.");
  let chosen = null;
  let query = null;
  let places = [];

  function layout(width, height) {
    const all = (values, i) => (query ? [...values, query[i]] : [...values]);
    const [toX, toY] = [spread(all(x, 0), width), spread(all(y, 1), height)];
    places = texts.map((_, i) => [toX(x[i]), height - toY(y[i])]);
    return query && [toX(query[0]), height - toY(query[1])];
  }

  function draw(context, width, height) {
    const star = layout(width, height);
    const near = chosen === null ? [] : nearestTo(chosen);
    context.strokeStyle = ink("--border-strong");
    context.lineWidth = 1;
    for (const { index } of near) line(context, places[chosen], places[index]);
    const isNear = new Set(near.map(({ index }) => index));
    const [plain, marked, ring] = ["--series-1", "--series-2", "--surface"].map(ink);
    const radius = texts.length > 150 ? 3.5 : 5;
    places.forEach((place, i) => {
      if (i !== chosen && !isNear.has(i)) dot(context, place, radius, plain, ring, chosen === null ? 0.9 : 0.35);
    });
    for (const { index } of near) dot(context, places[index], radius + 1, plain, ring, 1);
    if (chosen !== null) dot(context, places[chosen], radius + 2.5, marked, ring, 1);
    if (star) drawStar(context, star, ink("--series-5"), ring);
    const first = chosen === null ? [] : [chosen, ...isNear];
    drawLabels(context, width, [...new Set([...first, ...texts.keys()])].slice(0, first.length || texts.length), star, height);
  }

  function drawLabels(context, width, order, star, height) {
    const taken = star ? [boxAround(star, 9)] : [];
    for (const place of chosen === null ? places : []) taken.push(boxAround(place, 3));
    context.font = font(12);
    context.textBaseline = "middle";
    context.lineWidth = 3;
    context.lineJoin = "round";
    let drawn = 0;
    for (const index of order) {
      if (drawn >= MAX_LABELS) break;
      const words = beginning(texts[index].trimStart(), LABEL_CHARACTERS);
      const size = context.measureText(words).width;
      const spot = spots(places[index], size).find((box) => fits(box, width, height) && !taken.some((other) => overlap(box, other)));
      if (!spot) continue;
      taken.push(spot);
      drawn += 1;
      context.direction = RIGHT_TO_LEFT.test(words) ? "rtl" : "ltr";
      context.textAlign = "left";
      context.strokeStyle = ink("--surface");
      context.fillStyle = ink(index === chosen ? "--text" : "--muted");
      context.strokeText(words, spot[0] + 2, (spot[1] + spot[3]) / 2);
      context.fillText(words, spot[0] + 2, (spot[1] + spot[3]) / 2);
    }
  }

  function choose(index, by) {
    if (index === chosen) return;
    chosen = index;
    drawn.redraw();
    onChoice(index, by);
  }

  function point(pointerX, pointerY) {
    let [best, distance] = [null, REACH ** 2];
    places.forEach(([px, py], i) => {
      const squared = (px - pointerX) ** 2 + (py - pointerY) ** 2;
      if (squared < distance) [best, distance] = [i, squared];
    });
    if (best !== null) choose(best, "pointer"); // the last choice stays, so that its list can be read
  }

  function key(event) {
    const last = texts.length - 1;
    if (event.key === "Escape" && chosen !== null) {
      choose(null, "key");
      return true;
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    const next = { Home: 0, End: last }[event.key] ?? (step && (chosen === null ? 0 : Math.max(0, Math.min(last, chosen + step))));
    if (next === undefined) return false;
    choose(next, "key");
    return true;
  }

  const drawn = plot({ label, describedBy: help.id, height: (width) => Math.max(260, Math.min(width, 720)), draw, point, key });
  drawn.canvas.classList.add("pg-map");
  drawn.box.append(help);
  return {
    box: drawn.box,
    redraw: drawn.redraw,
    show: (index) => choose(index, "other"),
    showQuery(place) {
      query = place;
      drawn.redraw();
    },
  };
}

/** A function from values to pixels within the margins; in the middle if all values are equal. */
function spread(values, size) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const isFlat = high - low < 1e-6;
  return (value) => (isFlat ? size / 2 : MARGIN + ((value - low) / (high - low)) * (size - 2 * MARGIN));
}

function line(context, [x1, y1], [x2, y2]) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

function dot(context, [x, y], radius, fill, ring, opacity) {
  context.globalAlpha = opacity;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = fill;
  context.fill();
  context.strokeStyle = ring;
  context.lineWidth = 1;
  context.stroke();
  context.globalAlpha = 1;
}

function drawStar(context, [x, y], fill, ring) {
  context.beginPath();
  for (let i = 0; i < 10; i += 1) {
    const [radius, angle] = [i % 2 ? 4 : 10, (i * Math.PI) / 5 - Math.PI / 2];
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = fill;
  context.fill();
  context.strokeStyle = ring;
  context.stroke();
}

function boxAround([x, y], radius) {
  return [x - radius, y - radius, x + radius, y + radius];
}

/** Boxes of a label right, left, above and below of its point. */
function spots([x, y], width) {
  return [
    [x + 7, y - 8, x + width + 11, y + 8],
    [x - width - 11, y - 8, x - 7, y + 8],
    [x - width / 2 - 2, y - 24, x + width / 2 + 2, y - 8],
    [x - width / 2 - 2, y + 8, x + width / 2 + 2, y + 24],
  ];
}

function fits([left, top, right, bottom], width, height) {
  return left >= 0 && right <= width && top >= 0 && bottom <= height;
}

function overlap(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}
