// cohere-ai for Node, its old client.

import { CohereClient } from "cohere-ai";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new CohereClient({ environment: BASE_URL, token: API_KEY });
  const answer = await client.embed({ model: MODEL, inputType: "search_document", texts });
  return answer.embeddings;
  // docs: end
});
