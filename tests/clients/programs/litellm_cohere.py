"""LiteLLM with the prefix cohere/."""

import litellm
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    answer = litellm.embedding(model=f"cohere/{MODEL}", input=texts, api_base=f"{BASE_URL}/v2/embed", api_key=API_KEY)
    return [item["embedding"] for item in answer.data]
    # docs: end


run(embed)
