"""LiteLLM with the prefix infinity/."""

import litellm
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    answer = litellm.embedding(model=f"infinity/{MODEL}", input=texts, api_base=BASE_URL, api_key=API_KEY)
    return [item["embedding"] for item in answer.data]
    # docs: end


run(embed)
