"""What openai-python asks a server for besides vectors: its models, floats, and fewer dimensions."""

import json

from openai import BadRequestError, NotFoundError, OpenAI
from program import API_KEY, BASE_URL, MODEL

# docs: begin
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY)
names = [model.id for model in client.models.list()]
model = client.models.retrieve(MODEL)
# docs: end
answers = {"names": names, "id": model.id}
try:
    client.models.retrieve("no/model")
except NotFoundError as error:
    answers["unknown"] = error.message
try:
    client.embeddings.create(model=MODEL, input="one", dimensions=100)
except BadRequestError as error:
    answers |= {"dimensions": error.message, "param": error.param}
raw = client.embeddings.with_raw_response.create(model=MODEL, input=["one", "two"], encoding_format="float", user="me")
parsed = raw.parse()
answers |= {
    "floats": [item.embedding for item in parsed.data],
    "tokens": parsed.usage.total_tokens,
    "index": [item.index for item in parsed.data],
    "fingerprint": raw.headers["x-model-fingerprint"],
    "request_id": raw.headers["x-request-id"],
}
print(json.dumps({"answers": answers}))  # noqa: T201 - the program's result
