"""openai-python."""

from openai import OpenAI
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY)
    answer = client.embeddings.create(model=MODEL, input=texts)
    return [item.embedding for item in answer.data]
    # docs: end


run(embed)
