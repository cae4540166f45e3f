"""Haystack's Ollama embedder. Only OLLAMA_API_KEY gives it a key."""

import os

from haystack import Document
from haystack_integrations.components.embedders.ollama import OllamaDocumentEmbedder
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    os.environ["OLLAMA_API_KEY"] = API_KEY
    embedder = OllamaDocumentEmbedder(model=MODEL, url=BASE_URL)
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]
    # docs: end


run(embed)
