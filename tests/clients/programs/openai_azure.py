"""openai-python's client for Azure, which names the model in the address and sends the key as `api-key`."""

from openai import AzureOpenAI
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> list[list[float]]:
    # docs: begin
    client = AzureOpenAI(azure_endpoint=BASE_URL, api_key=API_KEY, api_version="2024-10-21")
    answer = client.embeddings.create(model=MODEL, input=texts)
    return [item.embedding for item in answer.data]
    # docs: end


run(embed)
