// Builds elements without markup in strings, so that no answer of the service can become markup.

/** Return an element: `h("p", {class: "muted", id: "x"}, "words", child)`. Functions become listeners, null is left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set the text of an element if it differs: a change that changes nothing would still be drawn and announced. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make the rows of a table body those of `rows` (lists of texts, or of [text, class]); cells that stay are not touched. */
export function setRows(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  for (const [position, cells] of rows.entries()) {
    const row = body.rows[position] ?? body.insertRow();
    for (const [column, cell] of cells.entries()) {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      let found = row.cells[column];
      if (!found) {
        found = document.createElement(column === 0 ? "th" : "td");
        if (column === 0) found.scope = "row";
        row.append(found);
      }
      setText(found, text);
      if (found.className !== kind) found.className = kind;
    }
    while (row.cells.length > cells.length) row.deleteCell(-1);
  }
}
