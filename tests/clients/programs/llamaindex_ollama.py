"""LlamaIndex's Ollama embedding."""

from llama_index.embeddings.ollama import OllamaEmbedding
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    options = {"headers": {"Authorization": f"Bearer {API_KEY}"}}
    embedding = OllamaEmbedding(model_name=MODEL, base_url=BASE_URL, client_kwargs=options)
    return embedding.get_text_embedding_batch(texts)
    # docs: end


run(embed)
