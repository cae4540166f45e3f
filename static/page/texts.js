/** Texts from what a person typed, pasted or dropped: lines, .txt, .json, .jsonl and .csv. */

export const MAX_TEXTS = 1000;
export const MAX_FILE_BYTES = 5 * 1024 * 1024;

const BLANK = /^[\s\u001c-\u001f\u0085]*$/;
const COLUMNS = ["text", "content", "sentence", "document", "body"];
const KINDS = { txt: linesOf, json: textsOfJson, jsonl: textsOfJsonLines, ndjson: textsOfJsonLines, csv: textsOfCsv };

/** A file that contains no texts this page can read; the message is for people. */
export class FileError extends Error {}

/**
 * The texts of lines: `texts`, the `lines` (from 0) they are on, and what was left out: `blank` lines, and texts `over`
 * MAX_TEXTS. `repeated` texts are kept.
 */
export function textsOf(value) {
  const texts = [];
  const lines = [];
  let blank = 0;
  let over = 0;
  const all = linesOf(value);
  all.forEach((line, number) => {
    if (BLANK.test(line)) blank += number < all.length - 1 || line !== "" ? 1 : 0; // not the end of the last line
    else if (texts.length === MAX_TEXTS) over += 1;
    else {
      texts.push(line);
      lines.push(number);
    }
  });
  return { texts, lines, blank, over, repeated: texts.length - new Set(texts).size };
}

/** The texts of a file, and a `note` on how they were read. Throws FileError. */
export async function textsOfFile(file) {
  const kind = file.name.toLowerCase().split(".").pop();
  const read = KINDS[kind] ?? (file.type.startsWith("text/") ? linesOf : null);
  if (!read) throw new FileError(`${file.name}: this page reads .txt, .json, .jsonl and .csv files.`);
  if (file.size > MAX_FILE_BYTES) {
    throw new FileError(`${file.name}: ${megabytes(file.size)} MB are more than the ${megabytes(MAX_FILE_BYTES)} MB this page reads.`);
  }
  const { texts, from } = withFrom(read(decoded(await file.arrayBuffer(), file.name), file.name));
  const oneLine = texts.map((text) => text.replace(/\s*(?:\r\n|\n|\r)\s*/g, " "));
  const joined = oneLine.filter((text, i) => text !== texts[i]).length;
  const notes = [`${file.name}${from}`];
  if (joined) notes.push(`line breaks within ${joined === 1 ? "one text" : `${joined} texts`} became spaces`);
  return { texts: oneLine.slice(0, MAX_TEXTS + 1), note: notes.join(": ") };
}

function withFrom(result) {
  return Array.isArray(result) ? { texts: result, from: "" } : result;
}

function megabytes(bytes) {
  return Math.round((bytes / 1024 / 1024) * 10) / 10;
}

function decoded(buffer, name) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(buffer);
  } catch (error) {
    throw new FileError(`${name}: the file is not UTF-8 text.`, { cause: error });
  }
}

function linesOf(value) {
  return value.split(/\r\n|\n|\r/);
}

function textsOfJson(value, name) {
  const parsed = parsedJson(value, name);
  const list = Array.isArray(parsed) ? parsed : (parsed?.texts ?? parsed?.data);
  if (!Array.isArray(list)) throw new FileError(`${name}: expected a JSON array of strings, or of objects with "text".`);
  return list.map((entry, i) => textOfEntry(entry, `${name}: entry ${i + 1}`));
}

function textsOfJsonLines(value, name) {
  const entries = linesOf(value).map((line, i) => ({ line, place: `${name}: line ${i + 1}` }));
  return entries.filter(({ line }) => !BLANK.test(line)).map(({ line, place }) => textOfEntry(parsedJson(line, place), place));
}

function parsedJson(value, place) {
  try {
    return JSON.parse(value);
  } catch (error) {
    throw new FileError(`${place} is not valid JSON.`, { cause: error });
  }
}

function textOfEntry(entry, place) {
  const text = typeof entry === "string" ? entry : COLUMNS.map((key) => entry?.[key]).find((x) => typeof x === "string");
  if (text === undefined) throw new FileError(`${place} is neither a string nor an object with "text".`);
  return text;
}

/** The column with a known name, such as `text`; otherwise the first column, and its first row is a text as well. */
function textsOfCsv(value, name) {
  const rows = rowsOfCsv(value, name);
  const names = (rows[0] ?? []).map((cell) => cell.trim().toLowerCase());
  const column = names.findIndex((cell) => COLUMNS.includes(cell));
  const texts = (column < 0 ? rows : rows.slice(1)).map((row) => row[Math.max(column, 0)] ?? "");
  return { texts, from: column < 0 ? " (first column)" : ` (column “${names[column]}”)` };
}

/** Rows of RFC 4180: cells in double quotes may contain commas, line breaks and doubled quotes. */
function rowsOfCsv(value, name) {
  const rows = [];
  let row = [];
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/y;
  while (cell.lastIndex < value.length) {
    const match = cell.exec(value);
    if (!match) throw new FileError(`${name}: row ${rows.length + 1} has a stray double quote.`);
    row.push(match[1] === undefined ? match[2] : match[1].replaceAll('""', '"'));
    if (match[3] !== ",") {
      rows.push(row);
      row = [];
    }
  }
  if (row.length) rows.push([...row, ""]);
  return rows;
}
