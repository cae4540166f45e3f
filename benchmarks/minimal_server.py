"""The server that people write themselves: FastAPI around one library call.

`python benchmarks/minimal_server.py ENGINE FOLDER PORT` serves `/embed` in TEI's format, where ENGINE is
`sentence-transformers` or `fastembed`. It needs fastapi, uvicorn and that library.
"""

import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

Encode = Callable[[list[str]], list[list[float]]]


class Request(BaseModel):
    """TEI's request."""

    inputs: list[str]


def load(engine: str, folder: str) -> Encode:
    if engine == "fastembed":
        from fastembed import TextEmbedding  # noqa: PLC0415

        embedding = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=folder)
        return lambda texts: [vector.tolist() for vector in embedding.embed(texts)]
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()


def create_app(encode: Encode) -> FastAPI:
    app = FastAPI()

    @app.post("/embed")
    def embed(request: Request) -> list[list[float]]:  # a plain function: FastAPI runs it in a thread
        return encode(request.inputs)

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(load(*sys.argv[1:3])), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
