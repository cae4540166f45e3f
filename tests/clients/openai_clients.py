"""The clients of OpenAI's dialect in Python."""

from tests.clients.support import Client

CLIENTS = (
    Client("openai_sync.py", "openai", max_texts=2048, too_many="2048"),
    Client("openai_async.py", "openai", max_texts=2048, too_many="2048"),
    Client("openai_sync.py", "openai1", max_texts=2048, too_many="2048"),
    Client("openai_async.py", "openai1", max_texts=2048, too_many="2048"),
    Client("openai_azure.py", "openai", max_texts=2048, too_many="2048"),
    Client("langchain_openai_default.py", "openai", requests=3, needs_vocabulary=True),
    Client("langchain_openai_texts.py", "openai", requests=3),
    Client("llama_index_openai.py", "openai", requests=30),
    Client("llama_index_openai_like.py", "openai", requests=300),
    Client("chroma_openai.py", "openai", max_texts=2048, too_many="2048"),
    Client("pydantic_ai_openai.py", "openai", max_texts=2048, too_many="2048"),
    Client("litellm_openai.py", "openai", max_texts=2048, too_many="2048"),
    Client("litellm_infinity.py", "openai", refused="Queued", max_texts=2048, too_many="2048"),
    Client("litellm_ollama.py", "openai", refused="Queued", requests=1),
    Client("litellm_cohere.py", "openai", refused="Queued", max_texts=2048, too_many="2048"),
)
