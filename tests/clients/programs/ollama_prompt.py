"""ollama-python: `embeddings`, the older call, which posts one text to /api/embeddings."""

from ollama import Client
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    client = Client(host=BASE_URL, headers={"Authorization": f"Bearer {API_KEY}"})
    return [client.embeddings(model=MODEL, prompt=text).embedding for text in texts]


run(embed)
