"""Haystack's OpenAI embedder. A batch that fails is only logged unless `raise_on_failure` is set."""

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.utils import Secret
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    url, key = f"{BASE_URL}/v1", Secret.from_token(API_KEY)
    embedder = OpenAIDocumentEmbedder(model=MODEL, api_base_url=url, api_key=key, raise_on_failure=True)
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]
    # docs: end


run(embed)
