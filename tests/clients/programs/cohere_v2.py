"""cohere-python: `ClientV2`, which posts to /v2/embed."""

from cohere import ClientV2
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = ClientV2(api_key=API_KEY, base_url=BASE_URL)
    answer = client.embed(model=MODEL, input_type="search_document", texts=texts, embedding_types=["float"])
    return answer.embeddings.float_
    # docs: end


run(embed)
