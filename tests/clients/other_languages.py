"""The clients for Node, Go and Java."""

from tests.clients.support import Client

TOO_MANY = "2048"
FULL = "no part of it was computed"
BAD_KEY = "The key is not valid"

CLIENTS = [
    Client("openai.mjs", "node", max_texts=2048, too_many=TOO_MANY),
    Client("openai6.mjs", "node", max_texts=2048, too_many=TOO_MANY),
    Client("ai_sdk.mjs", "node", requests=2, bad_key=BAD_KEY),
    Client("langchain_openai.mjs", "node", requests=6),
    Client("voyage.mjs", "node", max_texts=2048, too_many=TOO_MANY),
    Client("ollama.mjs", "node", bad_key=BAD_KEY, refused=FULL, requests=1),
    Client("langchain_ollama.mjs", "node", bad_key=BAD_KEY, requests=1),
    Client("cohere.mjs", "node", max_texts=2048, too_many=TOO_MANY),
    Client("cohere_v1.mjs", "node", max_texts=2048, too_many=TOO_MANY),
    Client("huggingface.mjs", "node", max_texts=2048, too_many=TOO_MANY, bad_key=BAD_KEY, refused=FULL),
    Client("openai.go", "go", max_texts=2048, too_many=TOO_MANY),
    Client("OpenAi.java", "java", max_texts=2048, too_many=TOO_MANY),
    Client("LangChain4j.java", "java", requests=2, takes_empty=False),
]
