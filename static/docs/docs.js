// Shows the API description of this service with Swagger UI. All addresses are relative, so any path prefix works.

const base = new URL(".", document.baseURI);
/** Where the page keeps a key for this tab, too. */
const STORED_KEY = `fast-embedding-key ${base.pathname}`;
const message = document.getElementById("message");
const keyForm = document.getElementById("key-form");

function storedKey() {
  try {
    return sessionStorage.getItem(STORED_KEY) ?? "";
  } catch {
    return ""; // Storage is blocked.
  }
}

function storeKey(key) {
  try {
    sessionStorage.setItem(STORED_KEY, key);
  } catch {
    // Storage is blocked: the key is asked for again.
  }
}

/** Fetch the description; ask for a key if the service wants one. */
async function start(key) {
  let response;
  try {
    response = await fetch(new URL("schema/openapi.json", base), key ? { headers: { Authorization: `Bearer ${key}` } } : {});
  } catch {
    say("The service cannot be reached. Reload this page to try again.");
    return;
  }
  if (response.status === 401 || response.status === 403) {
    // Without a key, the service's own words explain headers, which only programs need.
    askForKey(key ? (await problemOf(response)).detail : "The service shows this only to callers with a key.");
  } else if (!response.ok) {
    say((await problemOf(response)).detail);
  } else {
    if (key) storeKey(key);
    show(await response.json(), key);
  }
}

async function problemOf(response) {
  const words = { detail: `The service answered with status ${response.status}.` };
  try {
    return { ...words, ...(await response.json()) };
  } catch {
    return words; // A proxy's answer.
  }
}

function say(words) {
  keyForm.hidden = true;
  message.hidden = false;
  message.textContent = words;
}

function askForKey(reason) {
  message.hidden = true;
  document.getElementById("key-reason").textContent = reason;
  keyForm.hidden = false;
  document.getElementById("key").focus();
}

function show(spec, key) {
  message.hidden = true;
  keyForm.hidden = true;
  const ui = globalThis.SwaggerUIBundle({
    // Behind a proxy, the address of this page is the one that works. Two slashes at its beginning would name a host.
    spec: { ...spec, servers: [{ url: base.pathname.replace(/^\/+/, "/").replace(/(?!^)\/$/, "") }] },
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    filter: true,
    persistAuthorization: false,
    requestSnippetsEnabled: false,
    tryItOutEnabled: true,
    validatorUrl: null,
    onComplete: () => {
      if (key) ui.preauthorizeApiKey("bearer", key);
    },
  });
}

function followTheme() {
  let theme = null;
  try {
    theme = localStorage.getItem("fast-embedding-theme");
  } catch {
    // Storage is blocked: follow the system.
  }
  const isDark = theme === "dark" || (theme !== "light" && systemIsDark.matches);
  document.documentElement.classList.toggle("dark-mode", isDark);
}

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
systemIsDark.addEventListener("change", followTheme);
followTheme();

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  start(document.getElementById("key").value.trim());
});

start(storedKey());
