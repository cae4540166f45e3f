// LangChain for JavaScript, with OpenAI's API.

import { OpenAIEmbeddings } from "@langchain/openai";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const configuration = { baseURL: `${BASE_URL}/v1` };
  const embeddings = new OpenAIEmbeddings({ model: MODEL, apiKey: API_KEY, configuration });
  return embeddings.embedDocuments(texts);
  // docs: end
});
