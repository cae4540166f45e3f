"""What Ollama's clients ask about models: lists, details and digests."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from api.model_names import LATEST, ModelNames
from api.ollama_types import OllamaDetails, OllamaRunning, OllamaShowAnswer, OllamaTag
from engine.catalog import Model
from engine.loaded_facts import LoadedFacts

ARCHITECTURE = "fastembed"
"""The prefix of keys in `model_info`. Clients read it from there, so that any name works."""
DETAILS = OllamaDetails(format="onnx", family=ARCHITECTURE, families=[ARCHITECTURE])
UNKNOWN_CONTEXT_LENGTH = 512
"""The context length of a model that is not loaded and whose limit FastEmbed does not state. Clients may cut texts to
it: it is the input length of most models of the catalogue."""
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
"""The time of change of a model that is not a folder. Some clients require a time."""
NEVER = datetime(2200, 1, 1, tzinfo=UTC)
"""When a required model is evicted."""


def with_tag(name: str) -> str:
    """Return *name* with a tag, as all names have in Ollama's lists."""
    return name if ":" in name else f"{name}{LATEST}"


def tags_of(models: Iterable[Model], in_memory: Mapping[str, LoadedFacts], names: ModelNames) -> list[OllamaTag]:
    """Return an entry for each name of each model: first its real one, then aliases and the name in Ollama's library.

    Clients look for the name that they are configured with, so a model has an entry for each.
    """
    return [
        _tag(name, model, in_memory.get(model.name))
        for model in models
        for name in [model.name, *names.other_names(model)]
    ]


def running_models(models: Iterable[Model], in_memory: Mapping[str, LoadedFacts]) -> list[OllamaRunning]:
    """Return those of *models* that are in memory."""
    return [
        OllamaRunning(
            name=with_tag(model.name),
            model=with_tag(model.name),
            size=loaded.memory_bytes,
            size_vram=0,
            digest=digest_of(model, loaded),
            context_length=context_length(model, loaded),
            expires_at=loaded.expires_at or NEVER,
            details=DETAILS,
        )
        for model in models
        if (loaded := in_memory.get(model.name)) is not None
    ]


def show_answer(model: Model, loaded: LoadedFacts | None) -> OllamaShowAnswer:
    return OllamaShowAnswer(
        modelfile=f"FROM {model.name}\n",
        parameters="",
        template="{{ .Prompt }}",
        license=model.license,
        modified_at=_modified_at(model),
        details=DETAILS,
        model_info={
            "general.architecture": ARCHITECTURE,
            "general.basename": model.name,
            f"{ARCHITECTURE}.context_length": context_length(model, loaded),
            f"{ARCHITECTURE}.embedding_length": model.dim,
        },
        capabilities=["embedding"],
    )


def context_length(model: Model, loaded: LoadedFacts | None) -> int:
    """Return the longest input in tokens, special tokens included."""
    found = loaded.max_tokens if loaded else None
    return found or model.max_tokens or UNKNOWN_CONTEXT_LENGTH


def digest_of(model: Model, loaded: LoadedFacts | None) -> str:
    """Return the fingerprint (16 digits) of a loaded model; for others a sha256 (64 digits) of what identifies it.

    A fingerprint needs the content of all files, so it is known only once the model is loaded.
    """
    if loaded is not None and loaded.fingerprint is not None:
        return loaded.fingerprint.digest
    files = [(name, size) for name, size, _ in model.folder.state] if model.folder else []
    facts = [model.name, model.source, model.dim, model.size_bytes, model.card.revision, files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _tag(name: str, model: Model, loaded: LoadedFacts | None) -> OllamaTag:
    return OllamaTag(
        name=with_tag(name),
        model=with_tag(name),
        modified_at=_modified_at(model),
        size=model.size_bytes,
        digest=digest_of(model, loaded),
        dimension=model.dim,
        context_length=context_length(model, loaded),
        details=DETAILS,
    )


def _modified_at(model: Model) -> datetime:
    times_ns = [changed_ns for _, _, changed_ns in model.folder.state] if model.folder else []
    return datetime.fromtimestamp(max(times_ns) // 1_000_000_000, UTC) if times_ns else UNKNOWN_TIME
