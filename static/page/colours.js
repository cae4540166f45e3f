/**
 * Colour scales for canvases. Each one changes steadily in lightness, so it reads the same with any colour vision: from
 * the surface of the theme to the colour with the most contrast to it.
 */

const SEQUENTIAL = {
  light: ["#f7f4e9", "#cfe3c4", "#7fc1b3", "#3f8fb5", "#2d5a9e", "#241f5c"],
  dark: ["#171c26", "#25315e", "#2f5f94", "#3f9aa8", "#93cf9b", "#fbf3b4"],
};
const DIVERGING = {
  light: ["#7a3300", "#d9741a", "#f6c48f", "#f3f4f6", "#a3c7f2", "#2f74cf", "#0c2f73"],
  dark: ["#ffcf99", "#ea8a2e", "#7a4413", "#1c222b", "#1d4a86", "#4f97f0", "#c4deff"],
};

/** The theme that is shown: "light" or "dark". */
export function shownTheme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

export function sequential(theme) {
  return table(SEQUENTIAL[theme]);
}

export function diverging(theme) {
  return table(DIVERGING[theme]);
}

/** 256 colours [red, green, blue] along the stops. */
function table(stops) {
  const colours = stops.map((stop) => [1, 3, 5].map((start) => parseInt(stop.slice(start, start + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    return colours[left].map((x, channel) => Math.round(x + (place - left) * (colours[left + 1][channel] - x)));
  });
}

/** The index in a table of 256 colours of `value` between `low` and `high`. */
export function step(value, low, high) {
  const share = high > low ? (value - low) / (high - low) : 1;
  return Math.max(0, Math.min(255, Math.round(share * 255)));
}

/** Black or white, whichever has more contrast to the colour: at least 4.5 : 1. */
export function inkOn(colour) {
  const [red, green, blue] = colour.map((x) => (x <= 10 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}
