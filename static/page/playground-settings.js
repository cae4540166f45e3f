/** One set of options: model, input type, dimensions and number type, each with its error beside it. */

import { h } from "./dom.js";
import { counted, newId } from "./playground-words.js";
import { DTYPES } from "./vectors.js";

const INPUT_TYPES = [["", "None"], ["query", "query"], ["document", "document"]];
const COMMON_SIZES = [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
const MODEL_CODES = new Set(["unknown-model", "model-not-allowed", "model-unavailable", "fingerprint-mismatch"]);

/** `title` is the legend; `changed()` is called when an option changes. */
export function settings({ api, title, changed }) {
  const model = choice("Model", "model_name");
  const type = choice("Input type", "input_type", INPUT_TYPES);
  const dimensions = choice("Dimensions", "dimensions");
  const dtype = choice("Number type", "dtype", Object.keys(DTYPES).map((name) => [name, name]));
  const fields = { model_name: model, input_type: type, dimensions, dtype };
  let models = [];
  let asked = 0;

  const box = h("fieldset", { class: "pg-settings" },
    h("legend", { class: "label" }, title),
    model.box,
    h("div", { class: "pg-options" }, type.box, dimensions.box, dtype.box),
    h("div", {}, type.hint, dimensions.hint, dtype.hint));
  model.box.append(model.hint);
  box.addEventListener("change", (event) => {
    if (event.target === model.select) describe();
    changed();
  });

  /** Show what the service knows of the chosen model. A failure leaves the choice as it is. */
  async function describe() {
    asked += 1;
    const mine = asked;
    const entry = models.find(({ name }) => name === model.select.value);
    fill(dimensions.select, [["", entry ? `${entry.dimension} (all)` : "all"]]);
    model.hint.textContent = entry ? factsOf(entry) : "";
    type.hint.textContent = "";
    model.error.textContent = "";
    if (!entry) return;
    try {
      const details = await api.json(`models/${entry.name.split("/").map(encodeURIComponent).join("/")}`, { ask: "once" });
      if (mine !== asked) return;
      const chosen = dimensions.select.value;
      fill(dimensions.select, [["", `${details.dimension} (all)`], ...sizesOf(details).map((size) => [String(size), String(size)])]);
      dimensions.select.value = chosen;
      dimensions.hint.textContent = details.matryoshka ? "" : "The model was not trained for fewer dimensions.";
      type.hint.textContent = promptWords(details);
    } catch (error) {
      if (mine === asked) model.hint.textContent = `${factsOf(entry)} More is not known: ${api.inWords(error)}`;
    }
  }

  function show({ list, loaded, preferred }) {
    models = list;
    const kept = model.select.value;
    const option = ({ name }) => h("option", { value: name }, name);
    const groups = [
      ["In memory", list.filter(({ name }) => loaded.includes(name))],
      ["On this server", list.filter(({ name, is_cached: isCached }) => isCached && !loaded.includes(name))],
      ["Downloaded at first use", list.filter(({ name, is_cached: isCached }) => !isCached && !loaded.includes(name))],
    ];
    model.select.replaceChildren(...groups.filter(([, entries]) => entries.length).map(([label, entries]) => h("optgroup", { label }, ...entries.map(option))));
    const wanted = [kept, preferred].find((name) => list.some((entry) => entry.name === name));
    if (wanted) model.select.value = wanted;
    return describe();
  }

  return {
    box,
    show,
    /** Without a list of models, the service's default model is used. */
    showFailure(error, retry) {
      fill(model.select, [["", "Default model"]]);
      model.error.replaceChildren(`${api.inWords(error)} `, h("button", { class: "button", type: "button", click: retry }, "Try again"));
    },
    /** The fields of a request, without those left at their default. */
    options() {
      const chosen = {};
      if (model.select.value) chosen.model_name = model.select.value;
      if (type.select.value) chosen.input_type = type.select.value;
      if (dimensions.select.value) chosen.dimensions = Number(dimensions.select.value);
      if (dtype.select.value !== "float32") chosen.dtype = dtype.select.value;
      return chosen;
    },
    clearErrors() {
      for (const field of Object.values(fields)) field.setError("");
    },
    /** Show an error beside the field it is about. Returns whether there is such a field. */
    showError(error) {
      const name = MODEL_CODES.has(error.code) ? "model_name" : error.problem?.field;
      const field = Object.hasOwn(fields, name) ? fields[name] : null;
      field?.setError(api.inWords(error));
      return field?.select ?? null;
    },
  };
}

function choice(label, name, entries = []) {
  const id = newId(name);
  const select = h("select", { class: "input", id, name, autocomplete: "off", "aria-describedby": `${id}-error ${id}-hint` });
  const error = h("p", { class: "field-error", id: `${id}-error`, role: "alert" });
  const hint = h("p", { class: "hint", id: `${id}-hint` });
  fill(select, entries);
  return {
    select,
    error,
    hint,
    box: h("div", { class: "field" }, h("label", { for: id }, label), select, error),
    setError(words) {
      error.textContent = words;
      if (words) select.setAttribute("aria-invalid", "true");
      else select.removeAttribute("aria-invalid");
    },
  };
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, words]) => h("option", { value }, words)));
}

function factsOf(entry) {
  const input = entry.max_tokens ? `up to ${counted(entry.max_tokens, "token")}` : "any length";
  const download = entry.is_cached ? "" : ` The first request downloads ${Math.round(entry.size / 1e6).toLocaleString("en")} MB.`;
  return `${entry.dimension} dimensions, ${input}, ${entry.license}.${download}`;
}

/** The sizes that the model was trained for, smallest first; of "any from n", the usual ones. */
function sizesOf({ matryoshka, dimension }) {
  if (!matryoshka) return [];
  const { sizes, any_from: anyFrom } = matryoshka;
  const usual = anyFrom === null ? [] : [anyFrom, ...COMMON_SIZES.filter((size) => size > anyFrom)];
  return [...new Set([...sizes, ...usual])].filter((size) => size < dimension).sort((a, b) => a - b);
}

function promptWords(details) {
  if (details.needs_prompt) return "This model needs an input type: “document” for texts to search in, “query” for queries.";
  if (details.uses_tasks || details.prompts.query || details.prompts.document) return "The model has prompts for input types, and works without them.";
  return "The model has no prompts: all input types give the same vectors.";
}
