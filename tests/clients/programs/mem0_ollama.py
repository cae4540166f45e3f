"""mem0's Ollama embedder, which looks for the model in /api/tags first. Only OLLAMA_API_KEY gives it a key."""

import os

from mem0.configs.embeddings.base import BaseEmbedderConfig
from mem0.embeddings.ollama import OllamaEmbedding
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    os.environ["OLLAMA_API_KEY"] = API_KEY
    config = BaseEmbedderConfig(model=MODEL, ollama_base_url=BASE_URL)
    return OllamaEmbedding(config).embed_batch(texts)
    # docs: end


run(embed)
