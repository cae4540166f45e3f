/** Tokens as pieces of their text: which characters belong to which token, and where the model's input ends. */

const MAX_PIECES = 600;

/**
 * The pieces of `text` from the service's list of tokens, in their order. A piece has `characters`, and unless it lies
 * between tokens also `token` and `id`. `isSpecial`: it has no characters of the text, and shows the token's name.
 *
 * Positions of the service count code points; strings of JavaScript count UTF-16 units.
 * `cut` is the number of pieces that the model gets (null: all); `left` is the number of tokens beyond MAX_PIECES.
 */
export function piecesOf(text, tokens, maxTokens) {
  const characters = Array.from(text);
  const kept = keptTokens(tokens, maxTokens);
  const pieces = [];
  let position = 0;
  let cut = null;
  const shown = tokens.slice(0, Math.max(MAX_PIECES, kept + 40));
  shown.forEach((token, number) => {
    if (number === kept && kept < tokens.length) cut = pieces.length;
    const start = token.start === null ? position : Math.max(token.start, position);
    if (start > position) pieces.push({ characters: characters.slice(position, start).join("") });
    const own = token.start === null ? "" : characters.slice(start, token.end).join("");
    // A token within a character, as in byte-level vocabularies, has none of its own.
    pieces.push({ characters: own || token.token, token: token.token, id: token.id, isSpecial: own === "" });
    position = Math.max(position, token.end ?? position);
  });
  if (shown.length === tokens.length && position < characters.length) {
    pieces.push({ characters: characters.slice(position).join("") });
  }
  return { pieces, cut, left: tokens.length - shown.length };
}

/** How many tokens at the beginning the model gets: special tokens at the end (such as [SEP]) keep their place. */
function keptTokens(tokens, maxTokens) {
  if (maxTokens === null || tokens.length <= maxTokens) return tokens.length;
  let special = 0;
  while (special < tokens.length && tokens[tokens.length - 1 - special].start === null) special += 1;
  return maxTokens - special;
}
