// cohere-ai for Node, its current client.

import { CohereClientV2 } from "cohere-ai";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new CohereClientV2({ environment: BASE_URL, token: API_KEY });
  const inputs = texts.map((text) => ({ content: [{ type: "text", text }] }));
  const answer = await client.embed({ model: MODEL, inputType: "search_document", inputs });
  return answer.embeddings.float;
  // docs: end
});
