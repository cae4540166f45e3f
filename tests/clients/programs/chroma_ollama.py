"""Chroma's embedding function for Ollama. Only OLLAMA_API_KEY gives it a key."""

import os

import numpy as np
from chromadb.utils.embedding_functions import OllamaEmbeddingFunction
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[np.ndarray]:
    # docs: begin
    os.environ["OLLAMA_API_KEY"] = API_KEY
    function = OllamaEmbeddingFunction(url=BASE_URL, model_name=MODEL)
    return function(texts)
    # docs: end


run(embed)
