"""cohere-python: `Client`, which posts to /v1/embed, 96 texts at a time and up to 64 requests at once."""

from cohere import Client
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = Client(api_key=API_KEY, base_url=BASE_URL)
    answer = client.embed(model=MODEL, input_type="search_document", texts=texts)
    return answer.embeddings
    # docs: end


run(embed)
