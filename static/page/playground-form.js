/** The form: texts, from typing or a file, and one or two sets of options. */

import { h } from "./dom.js";
import { settings } from "./playground-settings.js";
import { counted, newId } from "./playground-words.js";
import { FileError, MAX_FILE_BYTES, MAX_TEXTS, textsOf, textsOfFile } from "./texts.js";

const EXAMPLE = [
  "How do I reset my password?",
  "I forgot my login and cannot sign in.",
  "Where can I change my e-mail address?",
  "The parcel has not arrived yet.",
  "When will my order be delivered?",
  "Can I return shoes that do not fit?",
  "Wie setze ich mein Passwort zurück?",
  "Donaudampfschifffahrtsgesellschaftskapitän",
  "كيف أعيد تعيين كلمة المرور؟",
  "איך מאפסים סיסמה?",
  "A family of four 👨‍👩‍👧‍👦 on holiday",
  "The cat sleeps on the warm windowsill.",
];

/** `submit()`, `cancel()` and `changed()` are called on what the user does. */
export function form({ api, submit, cancel, changed }) {
  const textarea = h("textarea", {
    class: "input pg-texts", id: newId("texts"), rows: 10, spellcheck: "false", autocomplete: "off", dir: "auto", wrap: "soft",
    placeholder: "One text a line. Or drop a file here.",
  });
  const error = h("p", { class: "field-error", id: newId("texts-error"), role: "alert" });
  const note = h("p", { class: "hint", id: newId("texts-note"), "aria-live": "polite" });
  textarea.setAttribute("aria-describedby", `${error.id} ${note.id}`);
  const picker = h("input", { type: "file", hidden: true, accept: ".txt,.json,.jsonl,.ndjson,.csv,text/plain" });
  const sides = ["A", "B"].map((letter) => ({ letter, settings: settings({ api, title: letter === "A" ? "Options" : "Compare with", changed }) }));
  const compare = h("input", { type: "checkbox", id: newId("compare"), autocomplete: "off" });
  const embedButton = h("button", { class: "button primary", type: "submit" }, "Embed");
  const cancelButton = h("button", { class: "button", type: "button", hidden: true, click: cancel }, "Cancel");
  const progress = h("progress", { class: "pg-progress", hidden: true, max: 1, value: 0, "aria-label": "Progress" });
  const status = h("p", { class: "hint pg-status", "aria-live": "polite" });
  const problem = h("p", { class: "field-error", role: "alert" });
  let source = "";

  const box = h("form", { class: "card pg-form", novalidate: true },
    h("div", { class: "field pg-texts-field" },
      h("div", { class: "row pg-texts-head" },
        h("label", { for: textarea.id, class: "label" }, "Texts"),
        h("div", { class: "row" },
          h("button", { class: "button quiet", type: "button", click: () => fillWith(EXAMPLE, "") }, "Example"),
          h("button", { class: "button quiet", type: "button", click: () => picker.click() }, "Open file"),
          h("button", { class: "button quiet", type: "button", click: () => fillWith([], "") }, "Clear"))),
      textarea, picker, error, note),
    h("div", { class: "pg-side-settings" },
      sides[0].settings.box,
      h("div", { class: "row" }, compare, h("label", { for: compare.id, class: "label" }, "Compare two models or options")),
      sides[1].settings.box),
    h("div", { class: "row pg-actions" }, embedButton, cancelButton, progress, status, problem));
  sides[1].settings.box.hidden = true;

  function fillWith(texts, from) {
    source = from;
    textarea.value = texts.join("\n");
    error.textContent = "";
    update();
    textarea.focus();
    textarea.setSelectionRange(0, 0);
    textarea.scrollTop = 0;
  }

  function update() {
    note.textContent = noteOn(textsOf(textarea.value), source);
    changed();
  }

  async function open(file) {
    try {
      const { texts, note: from } = await textsOfFile(file);
      fillWith(texts, from);
    } catch (failure) {
      error.textContent = failure instanceof FileError ? failure.message : api.inWords(failure);
    }
  }

  let timer = 0;
  textarea.addEventListener("input", () => {
    source = "";
    clearTimeout(timer); // a long text is not read at each key
    timer = setTimeout(update, 150);
  });
  textarea.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) box.requestSubmit();
  });
  picker.addEventListener("change", () => {
    if (picker.files[0]) open(picker.files[0]);
    picker.value = "";
  });
  box.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    box.classList.add("pg-drop");
  });
  box.addEventListener("dragleave", (event) => !box.contains(event.relatedTarget) && box.classList.remove("pg-drop"));
  box.addEventListener("drop", (event) => {
    box.classList.remove("pg-drop");
    if (event.dataTransfer.files.length === 0) return; // text is dropped as usual
    event.preventDefault();
    if (event.dataTransfer.files.length === 1) open(event.dataTransfer.files[0]);
    else error.textContent = "Drop one file at a time.";
  });
  compare.addEventListener("change", () => {
    sides[1].settings.box.hidden = !compare.checked;
    sides[0].settings.box.firstChild.textContent = compare.checked ? "Options A" : "Options";
    sides[1].settings.box.firstChild.textContent = "Options B";
    changed();
  });
  box.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  update();

  return {
    box,
    settings: sides.map((side) => side.settings),
    texts: () => textsOf(textarea.value),
    sides: () => sides.slice(0, compare.checked ? 2 : 1).map((side) => ({ letter: side.letter, options: side.settings.options() })),
    clearErrors() {
      for (const place of [error, problem, status]) place.textContent = "";
      textarea.removeAttribute("aria-invalid");
      for (const side of sides) side.settings.clearErrors();
    },
    /** `share`: of all texts, from 0 to 1; null: nothing is running. */
    showProgress(share, words) {
      const isRunning = share !== null;
      const hadFocus = document.activeElement === cancelButton;
      box.setAttribute("aria-busy", String(isRunning));
      cancelButton.hidden = !isRunning;
      progress.hidden = !isRunning;
      if (!isRunning && hadFocus) embedButton.focus();
      progress.value = share ?? 0;
      status.textContent = words;
    },
    /** Show an error beside what it is about: a line of the texts, an option, or the form. */
    showError(failure, side) {
      const settingsOfSide = sides.find(({ letter }) => letter === side)?.settings;
      const field = settingsOfSide?.showError(failure);
      if (field) field.focus();
      else if (failure.problem?.field === "texts" || failure.text !== undefined) showTextError(failure);
      else problem.textContent = failure.words ?? api.inWords(failure);
    },
  };

  function showTextError(failure) {
    textarea.setAttribute("aria-invalid", "true");
    const words = failure.words ?? api.inWords(failure);
    if (failure.text === undefined) {
      error.textContent = words;
      textarea.focus();
      return;
    }
    const { lines } = textsOf(textarea.value);
    const line = lines[failure.text];
    error.replaceChildren(
      `Line ${(line + 1).toLocaleString("en")}: ${words.replace(/^texts\[\d+\]: /, "")} `,
      h("button", { class: "button", type: "button", click: () => selectLine(line) }, "Show the line"));
  }

  function selectLine(number) {
    const before = textarea.value.split("\n").slice(0, number);
    const start = before.reduce((sum, line) => sum + line.length + 1, 0);
    const end = textarea.value.indexOf("\n", start);
    textarea.focus();
    textarea.setSelectionRange(start, end < 0 ? textarea.value.length : end);
    textarea.scrollTop = (textarea.scrollHeight * start) / Math.max(textarea.value.length, 1) - 40;
  }
}

function noteOn({ texts, blank, over, repeated }, source) {
  if (texts.length === 0 && !source) {
    return `Up to ${counted(MAX_TEXTS, "line")}, or a .txt, .json, .jsonl or .csv file of up to ${MAX_FILE_BYTES / 1024 / 1024} MB. Nothing you enter is stored.`;
  }
  const parts = [counted(texts.length, "text")];
  if (repeated) parts.push(`${repeated} repeated`);
  if (blank) parts.push(`${counted(blank, "blank line")} left out`);
  if (over) parts.push(`all after the first ${MAX_TEXTS.toLocaleString("en")} left out`);
  return `${source ? `${source}. ` : ""}${parts.join(", ")}.`;
}
