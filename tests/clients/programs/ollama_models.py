"""ollama-python: what it asks a server for besides vectors. Prints an object with its answers."""

import json

from ollama import Client
from program import API_KEY, BASE_URL, MODEL

client = Client(host=BASE_URL, headers={"Authorization": f"Bearer {API_KEY}"})
shown = client.show(MODEL)
answers = {
    "listed": [model.model for model in client.list().models],
    "running": [model.model for model in client.ps().models],
    "context_length": shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"],
    "pulled": client.pull(MODEL).status,
    "preloaded": client.embed(model=MODEL, input="").embeddings,
}
print(json.dumps({"answers": answers}))  # noqa: T201 - the program's result
