/** The request as code to copy, and the vectors as files. */

import { h } from "./dom.js";
import { nameOf } from "./playground-charts.js";
import { npyFile } from "./npy.js";
import { newId } from "./playground-words.js";
import { inSlices } from "./slices.js";
import { snippets } from "./snippets.js";
import { DTYPES, numbersOf } from "./vectors.js";

const LANGUAGES = [["curl", "curl"], ["python", "Python"], ["javascript", "JavaScript"], ["openai", "OpenAI client"]];

/** Code for each of `sides`, and its vectors as files. Returns `box`, and `refresh` for when the key changes. */
export function codeAndFiles({ api, sides, texts }) {
  const code = h("code", {});
  const status = h("p", { class: "hint", "aria-live": "polite" });
  let [side, language] = [sides[0], "curl"];
  let shown = "";

  function show() {
    const needsKey = api.getKey() !== "";
    shown = snippets({ base: api.url(""), texts, options: { ...side.options, model_name: side.model }, needsKey })[language];
    code.textContent = shown;
    status.textContent = "";
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText(shown);
      status.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(code); // without HTTPS there is no clipboard
      status.textContent = "Selected: press Ctrl+C to copy.";
    }
  }

  async function saveJson() {
    const parts = await inSlices(jsonParts(side, texts));
    save(new Blob(parts, { type: "application/json" }), "json");
  }

  function saveNpy() {
    const numbers = side.bytes[0].length / DTYPES[side.dtype].bytes;
    const all = new Uint8Array(side.bytes.length * side.bytes[0].length);
    side.bytes.forEach((bytes, i) => all.set(bytes, i * bytes.length));
    save(new Blob([npyFile(all, DTYPES[side.dtype].numpy, [texts.length, numbers])]), "npy");
  }

  function save(blob, extension) {
    const address = URL.createObjectURL(blob);
    const name = `${side.model.split("/").pop()}-${side.dtype}-${texts.length}x${side.dimension}.${extension}`;
    h("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    status.textContent = `Saved ${name}.`;
  }

  show();
  const box = h("div", { class: "pg-flow" },
    sides.length > 1 ? choices("Options", sides.map((entry) => [entry, nameOf(entry, sides)]), (entry) => {
      side = entry;
      show();
    }) : null,
    h("div", { class: "row pg-code-head" },
      choices("Language", LANGUAGES, (name) => {
        language = name;
        show();
      }),
      h("button", { class: "button", type: "button", click: copy }, "Copy")),
    h("pre", { class: "pg-code", tabindex: 0, "aria-label": "Code" }, code),
    h("div", { class: "row" },
      h("button", { class: "button", type: "button", click: saveJson }, "Download JSON"),
      h("button", { class: "button", type: "button", click: saveNpy }, "Download .npy"),
      status));
  return { box, refresh: show };
}

/** Radio buttons in a row. */
function choices(label, entries, choose) {
  const name = newId("choice");
  return h("fieldset", { class: "pg-choices" }, h("legend", { class: "visually-hidden" }, label), ...entries.map(([value, words], i) => h("label", {},
    h("input", { type: "radio", name, class: "visually-hidden", checked: i === 0, autocomplete: "off", change: () => choose(value) }), h("span", {}, words))));
}

function* jsonParts(side, texts) {
  const head = { ...side.options, model_name: side.model, dimension: side.dimension, dtype: side.dtype, tokens: side.tokens, truncated: side.truncated, texts };
  const parts = [`${JSON.stringify(head).slice(0, -1)},\n"embeddings":[`];
  for (const [i, bytes] of side.bytes.entries()) {
    // The shortest digits that give the same float32, as in the service's answers, would be longer to compute.
    parts.push(i ? ",\n" : "\n", JSON.stringify(numbersOf(bytes, side.dtype)));
    yield;
  }
  parts.push("\n]}\n");
  return parts;
}
