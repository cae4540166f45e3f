// The Vercel AI SDK with its provider for servers that speak OpenAI's API.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany } from "ai";

import { API_KEY, BASE_URL, MODEL, run } from "./program.mjs";

await run(async (texts) => {
  // docs: begin
  const provider = createOpenAICompatible({ name: "local", baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
  const { embeddings } = await embedMany({ model: provider.embeddingModel(MODEL), values: texts });
  return embeddings;
  // docs: end
});
