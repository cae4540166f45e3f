// Starts the page: tabs, theme, key dialog, and what the header says.

import * as api from "./api.js";
import * as overview from "./overview.js";
import * as playground from "./playground.js";
import { state } from "./state.js";

const VIEWS = { overview, playground };
const THEMES = ["auto", "light", "dark"];
const THEME_WORDS = { auto: "automatic", light: "light", dark: "dark" };
const STORED_THEME = "fast-embedding-theme";
const byId = (id) => document.getElementById(id);

// Tabs. Their address is the fragment, so that a view can be linked and "back" works.

function show(name, { focus = false } = {}) {
  for (const view of Object.keys(VIEWS)) {
    const tab = byId(`tab-${view}`);
    const isShown = view === name;
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    byId(view).hidden = !isShown;
    if (isShown && focus) tab.focus();
  }
  if (state.view !== name) state.set("view", name);
}

function viewOfAddress() {
  const name = location.hash.slice(1);
  return Object.hasOwn(VIEWS, name) ? name : null;
}

function startTabs() {
  const names = Object.keys(VIEWS);
  for (const [position, name] of names.entries()) {
    const tab = byId(`tab-${name}`);
    const open = (view, options) => {
      show(view, options);
      if (viewOfAddress() !== view) history.pushState(null, "", `#${view}`);
    };
    tab.addEventListener("click", () => open(name));
    tab.addEventListener("keydown", (event) => {
      const target = {
        ArrowRight: names[(position + 1) % names.length],
        ArrowLeft: names[(position + names.length - 1) % names.length],
        Home: names[0],
        End: names.at(-1),
      }[event.key];
      if (!target) return;
      event.preventDefault();
      open(target, { focus: true });
    });
  }
  for (const event of ["hashchange", "popstate"]) {
    addEventListener(event, () => {
      if (location.hash !== "#main") show(viewOfAddress() ?? "overview");
    });
  }
  show(viewOfAddress() ?? "overview");
}

// Theme.

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (theme === "auto") localStorage.removeItem(STORED_THEME);
    else localStorage.setItem(STORED_THEME, theme);
  } catch {
    // Storage is blocked: the theme lasts until the page is left.
  }
  const words = `Theme: ${THEME_WORDS[theme]}`;
  byId("theme-words").textContent = words;
  byId("theme-button").title = words;
  state.set("theme", theme);
}

function startTheme() {
  setTheme(document.documentElement.dataset.theme ?? "auto");
  byId("theme-button").addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.set("theme", state.theme));
}

// Key.

function askForKey(reason) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  const problem = byId("key-error");
  const hadKey = api.getKey() !== "";
  byId("key-title").textContent = reason ? "A key is required" : "Use a key";
  byId("key-reason").textContent = reason || "Sent with each request of this page.";
  problem.textContent = reason && hadKey ? "The key of this tab is not accepted." : "";
  input.value = "";
  return new Promise((resolve) => {
    const submit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (/^[\x21-\x7e]+$/.test(key)) {
        api.setKey(key);
        dialog.close(key);
        return;
      }
      problem.textContent = key ? "A key contains only ASCII letters, digits and punctuation, no spaces." : "Enter a key.";
      input.focus();
    };
    const cancel = () => dialog.close("");
    dialog.returnValue = "";
    byId("key-form").addEventListener("submit", submit);
    byId("key-cancel").addEventListener("click", cancel);
    dialog.addEventListener(
      "close",
      () => {
        byId("key-form").removeEventListener("submit", submit);
        byId("key-cancel").removeEventListener("click", cancel);
        const key = dialog.returnValue;
        dialog.returnValue = "";
        input.value = "";
        resolve(key);
      },
      { once: true },
    );
    dialog.showModal();
    input.focus();
  });
}

function startKey() {
  api.setKeyDialog(askForKey);
  const button = byId("key-button");
  const update = (key) => {
    const words = key ? "Forget the key" : "Use a key";
    button.setAttribute("aria-label", words);
    button.title = key ? "This tab has a key. Forget it" : "";
    button.dataset.held = String(Boolean(key));
    byId("key-words").textContent = words;
  };
  api.onKeyChange(update);
  update(api.getKey());
  button.addEventListener("click", () => (api.getKey() ? api.setKey("") : api.enterKey()));
}

// Header.

function startHeader() {
  state.on("health", ({ level, words }) => {
    const health = byId("health");
    if (health.dataset.level !== level) health.dataset.level = level;
    const shown = byId("health-words");
    if (shown.textContent !== words) shown.textContent = words;
  });
  state.on("info", (info) => {
    if (!info) return;
    byId("service-name").textContent = info.name ?? "Fast Embedding API";
    byId("service-version").textContent = info.version ? `v${info.version}` : "";
    document.title = info.name ?? document.title;
    byId("docs-link").hidden = !info.docs; // the docs can be off
  });
}

// A view that cannot start says so, and leaves the other one alone.
function mount(name) {
  const root = byId(name);
  try {
    VIEWS[name].mount(root, { api, state });
  } catch (error) {
    console.error(error);
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.dataset.level = "bad";
    notice.setAttribute("role", "alert");
    notice.textContent = `This view could not start. ${api.inWords(error)}`;
    root.replaceChildren(notice);
  }
}

startTheme();
startKey();
startHeader();
startTabs();
for (const name of Object.keys(VIEWS)) mount(name);
