"""langchain-ollama. With `validate_model_on_init`, it looks for the model in /api/tags first."""

from langchain_ollama import OllamaEmbeddings
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    options = {"headers": {"Authorization": f"Bearer {API_KEY}"}}
    embeddings = OllamaEmbeddings(model=MODEL, base_url=BASE_URL, client_kwargs=options, validate_model_on_init=True)
    return embeddings.embed_documents(texts)
    # docs: end


run(embed)
