// What the parts of the page share. Whoever changes a value calls `set`; others listen with `on`.

class State extends EventTarget {
  /** What `GET /` returned: name, version, models. null until it did. */
  info = null;
  /** {level: "ok" | "warn" | "bad" | "unknown", words} for the header. */
  health = { level: "unknown", words: "Connecting …" };
  /** The view that is shown: "overview" or "playground". */
  view = "overview";
  /** "auto", "light" or "dark". The event "theme" also comes when the system changes its own: redraw canvases then. */
  theme = "auto";

  /** Set a value and report it as an event of the same name. */
  set(name, value) {
    this[name] = value;
    this.dispatchEvent(new Event(name));
  }

  /** Call `listener` with the value now and after each change. */
  on(name, listener) {
    this.addEventListener(name, () => listener(this[name]));
    listener(this[name]);
  }
}

export const state = new State();

/** Return the colour of a token of style.css (such as "--series-1") in the theme of now, for canvases. */
export function color(token) {
  const probe = document.createElement("i");
  probe.hidden = true;
  probe.style.color = `var(${token})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
