"""langchain-cohere, which posts to /v1/embed."""

from langchain_cohere import CohereEmbeddings
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    embeddings = CohereEmbeddings(model=MODEL, base_url=BASE_URL, cohere_api_key=API_KEY)
    return embeddings.embed_documents(texts)
    # docs: end


run(embed)
