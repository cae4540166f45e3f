"""LangChain for OpenAI, set to send texts."""

from langchain_openai import OpenAIEmbeddings
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    url = f"{BASE_URL}/v1"
    embeddings = OpenAIEmbeddings(base_url=url, api_key=API_KEY, model=MODEL, check_embedding_ctx_length=False)
    return embeddings.embed_documents(texts)
    # docs: end


run(embed)
