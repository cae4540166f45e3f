"""Haystack's Cohere embedder, which posts to /v2/embed."""

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereDocumentEmbedder
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    embedder = CohereDocumentEmbedder(api_key=Secret.from_token(API_KEY), model=MODEL, api_base_url=BASE_URL)
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]
    # docs: end


run(embed)
