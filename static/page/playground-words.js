/** Numbers and texts as the Playground writes them. */

let lastId = 0;

/** An id for an element that a label or description refers to. */
export function newId(name) {
  lastId += 1;
  return `pg-${name}-${lastId}`;
}

/** "1 text", "12 texts", "1,000 texts". */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** The first characters of a text, never half of one. */
export function beginning(text, limit) {
  const characters = Array.from(text.slice(0, 4 * limit));
  return characters.length <= limit && text.length <= 4 * limit ? text : `${characters.slice(0, limit - 1).join("").trimEnd()}…`;
}

/** A cosine with two digits; "−" as minus. */
export function score(value) {
  return value.toFixed(2).replace("-0.00", "0.00").replace("-", "−");
}
