"""Chroma's embedding function for text-embeddings-inference, which posts to exactly the URL and waits 5 seconds."""

import numpy as np
from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[np.ndarray]:
    # docs: begin
    function = HuggingFaceEmbeddingServer(url=f"{BASE_URL}/tei/{MODEL}", api_key=API_KEY)
    return function(texts)
    # docs: end


run(embed)
