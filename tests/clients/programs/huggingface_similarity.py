"""huggingface_hub: `sentence_similarity`, posted to the server's bare address. Prints one row: the similarities."""

from huggingface_hub import InferenceClient
from program import API_KEY, BASE_URL, run


def embed(texts: list[str]) -> list[list[float]]:
    client = InferenceClient(base_url=BASE_URL, token=API_KEY)
    return [client.sentence_similarity(texts[0], other_sentences=texts[1:])]


run(embed)
