"""voyageai: `Client`, which posts to /v1/embeddings with keys of its own and `encoding_format: base64`."""

from program import API_KEY, BASE_URL, MODEL, run
from voyageai import Client


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = Client(api_key=API_KEY, base_url=f"{BASE_URL}/v1", max_retries=3)
    answer = client.embed(texts, model=MODEL, input_type="document")
    return answer.embeddings
    # docs: end


run(embed)
