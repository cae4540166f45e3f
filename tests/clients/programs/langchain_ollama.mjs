// LangChain for JavaScript, with Ollama's API.

import { OllamaEmbeddings } from "@langchain/ollama";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const headers = { Authorization: `Bearer ${API_KEY}` };
  const options = { truncate: true, maxRetries: 1 };
  const embeddings = new OllamaEmbeddings({ model: MODEL, baseUrl: BASE_URL, headers, ...options });
  return embeddings.embedDocuments(texts);
  // docs: end
});
