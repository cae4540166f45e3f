"""Chroma with its embedding function for OpenAI."""

import chromadb
from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    function = OpenAIEmbeddingFunction(api_base=f"{BASE_URL}/v1", api_key=API_KEY, model_name=MODEL)
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    ids = [str(number) for number in range(len(texts))]
    collection.add(ids=ids, documents=texts)
    # docs: end
    vectors = collection.get(ids=ids, include=["embeddings"])["embeddings"]
    chromadb.EphemeralClient().delete_collection("texts")
    return vectors


run(embed)
