"""The clients of Ollama, Cohere, Voyage and text-embeddings-inference in Python, and frameworks over them."""

from tests.clients.support import Client

FULL = "Queued"
NOT_A_LIST = "Input should be a valid list"
NOT_A_NUMBER = "could not convert string to float"
"""What two clients show of every error, because they look at the body without looking at the status."""
ONLINE = {"HF_HUB_OFFLINE": "0"}
"""huggingface_hub reaches no server at all when it is offline, not even one of this machine."""

CLIENTS = (
    Client("ollama_sync.py", "sdks", requests=1, refused=FULL),
    Client("cohere_v2.py", "sdks", max_texts=2048, too_many="2048"),
    Client("cohere_v2.py", "cohere5", max_texts=2048, too_many="2048"),
    Client("cohere_v1.py", "sdks", requests=32),
    Client("cohere_v1.py", "cohere5", requests=32),
    Client("voyage_sync.py", "sdks", max_texts=2048, too_many="2048", bad_key="The key is not valid"),
    Client("huggingface_features.py", "sdks", ONLINE, max_texts=2048, too_many="2048", refused=FULL),
    Client(
        "langchain_ollama_documents.py",
        "cohere5",
        requests=2,  # one lists the models
        refused=FULL,
        bad_model="not found in Ollama",
    ),
    Client("langchain_cohere_documents.py", "cohere5", requests=32),
    Client("llamaindex_ollama.py", "cohere5", requests=300, refused=FULL),
    Client(
        "llamaindex_tei.py",
        "cohere5",
        requests=30,  # its default of 10 texts a request makes 300
        refused=NOT_A_LIST,
        bad_model=NOT_A_LIST,
        bad_key=NOT_A_LIST,
    ),
    Client("haystack_openai.py", "sdks", requests=46),  # it embeds equal documents once, and sends 32 at a time
    Client("haystack_tei.py", "sdks", ONLINE, requests=94, refused=FULL),
    Client("haystack_ollama.py", "sdks", requests=94, refused=FULL),
    Client("haystack_cohere.py", "sdks", requests=94),
    Client("chroma_ollama.py", "sdks", requests=1, refused=FULL),
    Client(
        "chroma_tei.py",
        "sdks",
        max_texts=2048,
        too_many=NOT_A_NUMBER,
        refused=NOT_A_NUMBER,
        bad_model=NOT_A_NUMBER,
        bad_key=NOT_A_NUMBER,
    ),
    Client("mem0_ollama.py", "sdks", requests=2, refused=FULL),  # one lists the models
)
