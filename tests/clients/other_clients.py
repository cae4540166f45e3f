"""The clients of Ollama, Cohere, Voyage and text-embeddings-inference in Python, and frameworks over them."""

from tests.clients.support import Client

FULL = "Too much work is waiting"
ONLINE = {"HF_HUB_OFFLINE": "0"}
"""huggingface_hub reaches no server at all when it is offline, not even one of this machine."""

CLIENTS = (
    Client("ollama_sync.py", "sdks", requests=1, refused=FULL),
    Client("cohere_v2.py", "sdks", max_texts=2048, too_many="2048"),
    Client("cohere_v2.py", "cohere5", max_texts=2048, too_many="2048"),
    Client("cohere_v1.py", "sdks", requests=32),
    Client("cohere_v1.py", "cohere5", requests=32),
    Client("voyage_sync.py", "sdks", max_texts=2048, too_many="2048"),
    Client("huggingface_features.py", "sdks", ONLINE, max_texts=2048, too_many="2048", refused=FULL),
    Client("langchain_ollama_documents.py", "cohere5", requests=2, refused=FULL),
    Client("langchain_cohere_documents.py", "cohere5", requests=32),
    Client("llamaindex_ollama.py", "cohere5", requests=300, refused=FULL),
    Client("llamaindex_tei.py", "cohere5", requests=300, refused="?"),
    Client("haystack_openai.py", "sdks", requests=94),
    Client("haystack_tei.py", "sdks", ONLINE, requests=94, refused=FULL),
    Client("haystack_ollama.py", "sdks", requests=94, refused=FULL),
    Client("haystack_cohere.py", "sdks", requests=94),
    Client("chroma_ollama.py", "sdks", requests=1, refused=FULL),
    Client("chroma_tei.py", "sdks", max_texts=2048, too_many="?", refused="?"),
    Client("mem0_ollama.py", "sdks", requests=2, refused=FULL),
)
