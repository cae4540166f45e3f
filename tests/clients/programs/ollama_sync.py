"""ollama-python: `embed`, which posts to /api/embed."""

from ollama import Client
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = Client(host=BASE_URL, headers={"Authorization": f"Bearer {API_KEY}"})
    answer = client.embed(model=MODEL, input=texts)
    return answer.embeddings
    # docs: end


run(embed)
