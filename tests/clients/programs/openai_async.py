"""openai-python, asynchronous."""

import asyncio

from openai import AsyncOpenAI
from program import API_KEY, BASE_URL, MODEL, run


async def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY)
    answer = await client.embeddings.create(model=MODEL, input=texts)
    return [item.embedding for item in answer.data]
    # docs: end


run(lambda texts: asyncio.run(embed(texts)))
