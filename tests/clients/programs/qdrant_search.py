"""qdrant-client: the first text is a query, the others are stored. Prints the index of the text found, as a row."""

from ollama import Client
from program import API_KEY, BASE_URL, MODEL, run
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = Client(host=BASE_URL, headers={"Authorization": f"Bearer {API_KEY}"})
    query, *stored = client.embed(model=MODEL, input=texts).embeddings
    qdrant = QdrantClient(":memory:")
    qdrant.create_collection("texts", vectors_config=VectorParams(size=len(query), distance=Distance.COSINE))
    qdrant.upsert("texts", [PointStruct(id=index, vector=vector) for index, vector in enumerate(stored, 1)])
    found = qdrant.query_points("texts", query=query, limit=1).points
    # docs: end
    return [[point.id for point in found]]


run(embed)
