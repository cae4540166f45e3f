"""Chroma with its embedding function for OpenAI."""

from contextlib import suppress

import chromadb
from chromadb.errors import NotFoundError
from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    with suppress(NotFoundError):  # of an earlier run: all clients in memory share their collections
        chromadb.EphemeralClient().delete_collection("texts")
    # docs: begin
    function = OpenAIEmbeddingFunction(api_base=f"{BASE_URL}/v1", api_key=API_KEY, model_name=MODEL)
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    ids = [str(number) for number in range(len(texts))]
    collection.add(ids=ids, documents=texts)
    # docs: end
    return collection.get(ids=ids, include=["embeddings"])["embeddings"]


run(embed)
