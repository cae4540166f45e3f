// voyageai for Node.

import { VoyageAIClient } from "voyageai";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new VoyageAIClient({ environment: `${BASE_URL}/v1`, apiKey: API_KEY });
  const answer = await client.embed({ model: MODEL, input: texts });
  return answer.data.map((item) => item.embedding);
  // docs: end
});
