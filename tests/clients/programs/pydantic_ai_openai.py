"""Pydantic AI."""

import asyncio

from program import API_KEY, BASE_URL, MODEL, run
from pydantic_ai import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.providers.openai import OpenAIProvider


async def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    provider = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key=API_KEY)
    embedder = Embedder(OpenAIEmbeddingModel(MODEL, provider=provider))
    result = await embedder.embed_documents(texts)
    # docs: end
    return result.embeddings


run(lambda texts: asyncio.run(embed(texts)))
