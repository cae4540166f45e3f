"""LlamaIndex for servers that speak OpenAI's dialect."""

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    embedding = OpenAILikeEmbedding(api_base=f"{BASE_URL}/v1", api_key=API_KEY, model_name=MODEL)
    return embedding.get_text_embedding_batch(texts)
    # docs: end


run(embed)
