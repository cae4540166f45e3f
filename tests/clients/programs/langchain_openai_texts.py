"""LangChain for OpenAI, told to send texts."""

from langchain_openai import OpenAIEmbeddings
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    embeddings = OpenAIEmbeddings(
        base_url=f"{BASE_URL}/v1", api_key=API_KEY, model=MODEL, check_embedding_ctx_length=False
    )
    return embeddings.embed_documents(texts)
    # docs: end


run(embed)
