// openai for Node, version 6.

import OpenAI from "openai6";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
  const answer = await client.embeddings.create({ model: MODEL, input: texts });
  return answer.data.map((item) => item.embedding);
  // docs: end
});
