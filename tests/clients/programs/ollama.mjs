// ollama for Node.

import { Ollama } from "ollama";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new Ollama({ host: BASE_URL, headers: { Authorization: `Bearer ${API_KEY}` } });
  const answer = await client.embed({ model: MODEL, input: texts });
  return answer.embeddings;
  // docs: end
});
