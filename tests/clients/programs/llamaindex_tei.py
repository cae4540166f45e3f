"""LlamaIndex's embedding for text-embeddings-inference, which posts to URL/embed, on a new connection each time."""

from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    url = f"{BASE_URL}/tei/{MODEL}"
    embedding = TextEmbeddingsInference(model_name=MODEL, base_url=url, auth_token=API_KEY, embed_batch_size=100)
    return embedding.get_text_embedding_batch(texts)
    # docs: end


run(embed)
