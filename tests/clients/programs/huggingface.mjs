// @huggingface/inference with an endpoint of one's own. The URL names the model; after `/tei` alone it is the default one.

import { InferenceClient } from "@huggingface/inference";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const client = new InferenceClient(API_KEY).endpoint(`${BASE_URL}/tei/${MODEL}`);
  return client.featureExtraction({ inputs: texts });
  // docs: end
});
