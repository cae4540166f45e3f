// Errors by kind, and what was refused and why: since the service started, and since this page was opened.

import { REFUSAL_ADVICE, kindOf, wordsOf } from "./error-words.js";
import { h, setRows, setText } from "./dom.js";
import { NOT_REPORTED, count } from "./figures.js";
import { growth, isRestart } from "./samples.js";

const KINDS = { quota: "over a quota", refused: "refused", caller: "by the caller", service: "failure" };

export class Errors {
  #seen = new Map();
  #errors = table("Errors by kind", ["What happened", "Code", "Kind", "While you watch", "Since the start"]);
  #refusals = table("What is refused and why", ["Why", "While you watch", "Since the start", "What to do"]);
  #statuses = h("p", { class: "statuses number" });

  constructor() {
    this.element = h(
      "div",
      { class: "grid halves" },
      card(
        h("h3", {}, "What was refused, and why"),
        "429: a caller was over a quota. 503: the service could not take the work. Sending it again later is safe.",
        this.#refusals.element,
      ),
      card(
        h("h3", {}, "Errors by kind"),
        "All answers that were not successes.",
        this.#errors.element,
        this.#statuses,
      ),
    );
  }

  update({ metrics }, before) {
    if (!metrics) return;
    const restarted = before !== null && isRestart(metrics, before);
    const policies = metrics.rate_limited ?? {};
    for (const [prefix, now, then] of [
      ["", metrics.errors, before?.errors],
      ["policy:", policies, before?.rate_limited],
    ]) {
      for (const [name, number] of Object.entries(now ?? {})) {
        const grown = before === null ? 0 : (growth(number, then?.[name] ?? 0, restarted) ?? 0);
        this.#seen.set(prefix + name, (this.#seen.get(prefix + name) ?? 0) + grown);
      }
    }
    this.#writeErrors(metrics);
    this.#writeRefusals(metrics, policies);
    const statuses = Object.entries(metrics.statuses ?? {}).sort();
    setText(
      this.#statuses,
      statuses.length
        ? `Answers by status: ${statuses.map(([status, number]) => `${status} × ${count(number)}`).join(" · ")}`
        : "",
    );
  }

  #writeErrors({ errors }) {
    if (!errors) return this.#errors.say(`Errors are ${NOT_REPORTED}.`);
    const found = Object.entries(errors).sort(([, a], [, b]) => b - a);
    this.#errors.write(
      found.map(([code, number]) => [
        wordsOf(code),
        [code, "mono"],
        KINDS[kindOf(code)],
        this.#watched(code),
        [count(number), "number"],
      ]),
    );
    return this.#errors.say(found.length ? "" : "No errors since the service started.");
  }

  #writeRefusals(metrics, policies) {
    if (!metrics.errors) return this.#refusals.say(`Refusals are ${NOT_REPORTED}.`);
    const limited = Object.entries(policies).filter(([, number]) => number > 0);
    const rows = limited.map(([policy, number]) => [
      `Over the quota “${policy}”`,
      this.#watched(`policy:${policy}`),
      [count(number), "number"],
      REFUSAL_ADVICE["rate-limited"],
    ]);
    for (const [code, number] of Object.entries(metrics.errors)) {
      if (!["quota", "refused"].includes(kindOf(code)) || (code === "rate-limited" && limited.length)) continue;
      rows.push([wordsOf(code), this.#watched(code), [count(number), "number"], REFUSAL_ADVICE[code] ?? ""]);
    }
    this.#refusals.write(rows);
    const store = metrics.limits?.store;
    const quotas = store === "off" ? " Quotas are off." : "";
    return this.#refusals.say(rows.length ? "" : `Nothing was refused since the service started.${quotas}`);
  }

  #watched(name) {
    return [count(this.#seen.get(name) ?? 0), "number"];
  }
}

/** A card with a heading, a hint about what it shows, and its content. */
export function card(heading, hint, ...content) {
  return h("article", { class: "card" }, heading, h("p", { class: "hint" }, hint), ...content);
}

/** A table that says in words when it is empty. */
export function table(caption, heads, numbers = []) {
  const body = h("tbody");
  const message = h("p", { class: "muted empty" }, "Waiting for the first figures …");
  const inner = h(
    "div",
    { class: "scroll-x", tabindex: "0", role: "region", "aria-label": caption, hidden: true },
    h(
      "table",
      { class: "table" },
      h("caption", { class: "visually-hidden" }, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) =>
            h(
              "th",
              {
                scope: "col",
                class: numbers.includes(head) || /watch|start/i.test(head) ? "number" : null,
              },
              head,
            ),
          ),
        ),
      ),
      body,
    ),
  );
  return {
    element: h("div", {}, inner, message),
    write: (rows) => setRows(body, rows),
    say: (words) => {
      setText(message, words);
      message.hidden = !words;
      inner.hidden = Boolean(words);
    },
  };
}
