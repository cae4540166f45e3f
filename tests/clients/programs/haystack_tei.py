"""Haystack's embedder for text-embeddings-inference, which asks for vectors that are not normalised by default."""

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    url, key = f"{BASE_URL}/tei/{MODEL}", Secret.from_token(API_KEY)
    embedder = HuggingFaceAPIDocumentEmbedder("text_embeddings_inference", {"url": url}, token=key, normalize=True)
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]
    # docs: end


run(embed)
