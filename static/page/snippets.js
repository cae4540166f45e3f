/** The same request as code: for curl, Python, JavaScript and OpenAI's client. Contains no key, only a placeholder. */

const KEY = "YOUR_API_KEY";
const MAX_TEXTS = 3;
const MAX_CHARACTERS = 200;
/** Invisible characters, those that change the direction of text, and halves of pairs: shown as escapes. */
const HIDDEN = /[\u007f-\u00a0\u00ad\u061c\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;
/** Names of number types in Voyage's fields of OpenAI's API, which has no float16. */
const OPENAI_DTYPES = { int8: "int8", uint8: "uint8", binary: "binary", ubinary: "ubinary" };

/**
 * The code by language: curl, python, javascript, openai.
 *
 * `base` is the URL of the service and ends with a slash; `options` are fields of `POST /embed/batch` besides `texts`;
 * `needsKey`: whether requests need a key.
 */
export function snippets({ base, texts, options, needsKey }) {
  const shown = texts.slice(0, MAX_TEXTS).map(shortened);
  const isAll = shown.length === texts.length && shown.every((text, i) => text === texts[i]);
  const note = isAll ? "" : `${shown.length} of ${texts.length} texts${shown.some((text, i) => text !== texts[i]) ? ", shortened" : ""}`;
  const request = { base, body: { texts: shown, ...options }, needsKey, note };
  return { curl: curl(request), python: python(request), javascript: javascript(request), openai: openai(request) };
}

function shortened(text) {
  const characters = Array.from(text.slice(0, 2 * (MAX_CHARACTERS + 1)));
  return characters.length <= MAX_CHARACTERS ? text : characters.slice(0, MAX_CHARACTERS).join("");
}

/** `value` as JSON, which is also a literal of Python and JavaScript: there are no true, false or null in it. */
function literal(value, space) {
  return JSON.stringify(value, null, space).replace(HIDDEN, (x) => `\\u${x.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** An argument of a POSIX shell. In single quotes only the single quote itself is special. */
export function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function curl({ base, body, needsKey, note }) {
  const parts = [`curl ${shellQuoted(`${base}embed/batch`)}`, `-H 'Content-Type: application/json'`];
  if (needsKey) parts.push(`-H 'Authorization: Bearer ${KEY}'`);
  parts.push(`-d ${shellQuoted(literal(body, 2))}`);
  return `${comment("#", note)}${parts.join(" \\\n  ")}\n`;
}

function python({ base, body, needsKey, note }) {
  const headers = needsKey ? `\n    headers={"Authorization": "Bearer ${KEY}"},` : "";
  return `${comment("#", note)}import httpx

response = httpx.post(
    ${literal(`${base}embed/batch`)},
    json=${indented(literal(body, 4))},${headers}
    timeout=60,
)
response.raise_for_status()
vectors = response.json()["embeddings"]
print(len(vectors), "vectors of", len(vectors[0]), "numbers")
`;
}

function javascript({ base, body, needsKey, note }) {
  const key = needsKey ? `, Authorization: "Bearer ${KEY}"` : "";
  return `${comment("//", note)}const response = await fetch(${literal(`${base}embed/batch`)}, {
  method: "POST",
  headers: { "Content-Type": "application/json"${key} },
  body: JSON.stringify(${literal(body, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error((await response.json()).detail);
const { embeddings } = await response.json();
console.log(embeddings.length, "vectors of", embeddings[0].length, "numbers");
`;
}

function openai({ base, body, needsKey, note }) {
  const lines = [`model=${literal(body.model_name)},`, `input=${literal(body.texts, 4)},`];
  if (body.dimensions) lines.push(`dimensions=${body.dimensions},`);
  const dtype = OPENAI_DTYPES[body.dtype];
  if (dtype) lines.push(`encoding_format="float",`);
  const extra = { ...(body.input_type && { input_type: body.input_type }), ...(dtype && { output_dtype: dtype }) };
  if (Object.keys(extra).length) lines.push(`extra_body=${literal(extra)},`);
  const without = body.dtype === "float16" ? "OpenAI's API has no float16: these vectors are float32" : "";
  return `${comment("#", note)}${comment("#", without)}from openai import OpenAI

client = OpenAI(base_url=${literal(`${base}v1`)}, api_key="${needsKey ? KEY : "unused"}")
answer = client.embeddings.create(
    ${lines.map(indented).join("\n    ")}
)
vectors = [entry.embedding for entry in answer.data]
print(len(vectors), "vectors of", len(vectors[0]), "numbers")
`;
}

function comment(sign, note) {
  return note ? `${sign} ${note}\n` : "";
}

function indented(code) {
  return code.replaceAll("\n", "\n    ");
}
