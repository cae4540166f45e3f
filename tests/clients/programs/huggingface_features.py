"""huggingface_hub: `feature_extraction`, which posts to the URL itself."""

import numpy as np
from huggingface_hub import InferenceClient
from program import API_KEY, BASE_URL, MODEL, run


def embed(texts: list[str]) -> np.ndarray:
    # docs: begin
    client = InferenceClient(base_url=f"{BASE_URL}/tei/{MODEL}", token=API_KEY)
    return client.feature_extraction(texts)
    # docs: end


run(embed)
