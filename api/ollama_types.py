"""Types of Ollama's JSON bodies and answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

ModelField = Annotated[str | None, Meta(description="Default: the first model of REQUIRED_MODELS.")]


class OllamaEmbedRequest(msgspec.Struct):
    """Texts to embed. Other fields, such as `options` and `keep_alive`, are ignored; null means absent."""

    model: ModelField = None
    input: Annotated[
        str | list[str] | None,
        Meta(description="A text, or any number of texts. Empty or absent: the model is loaded, nothing is embedded."),
    ] = None
    truncate: Annotated[
        bool | None, Meta(description="False: a text that is longer than the model's input is rejected, not cut.")
    ] = None
    dimensions: Annotated[
        int | None,
        Meta(
            description="Keep this many numbers of each vector, a size that the model was trained for. 0, or more "
            "than the model has: all."
        ),
    ] = None


class OllamaEmbeddingsRequest(msgspec.Struct):
    """One text to embed, in the older form. Other fields are ignored; null means absent."""

    model: ModelField = None
    prompt: Annotated[str | None, Meta(description="Empty or absent: the model is loaded, nothing is embedded.")] = None


class OllamaModelRequest(msgspec.Struct):
    """Names a model. Other fields are ignored; null means absent."""

    model: ModelField = None
    name: Annotated[str | None, Meta(description="The older name of `model`.")] = None


class OllamaPullRequest(OllamaModelRequest):
    """Names a model to get."""

    stream: Annotated[bool | None, Meta(description="False: one object instead of one per line.")] = None


@dataclass(frozen=True, slots=True)
class OllamaEmbedAnswer:
    """Vectors of length 1. Durations are in nanoseconds; `prompt_eval_count` is the tokens that the model has run."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


@dataclass(frozen=True, slots=True)
class OllamaEmbeddingsAnswer:
    """One vector, as the model returns it."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class OllamaDetails:
    """What Ollama says of a model's file. Sizes and quantisation are not known here."""

    format: str
    family: str
    families: list[str]
    parent_model: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


@dataclass(frozen=True, slots=True)
class OllamaTag:
    """One name of a model that may be used."""

    name: str
    model: str
    modified_at: datetime
    size: int
    digest: str
    dimension: int
    context_length: int
    details: OllamaDetails


@dataclass(frozen=True, slots=True)
class OllamaTags:
    """The names of all models that may be used."""

    models: list[OllamaTag]


@dataclass(frozen=True, slots=True)
class OllamaRunning:
    """A model in memory."""

    name: str
    model: str
    size: int
    size_vram: int
    digest: str
    context_length: int
    expires_at: datetime
    details: OllamaDetails


@dataclass(frozen=True, slots=True)
class OllamaProcesses:
    """The models in memory."""

    models: list[OllamaRunning]


@dataclass(frozen=True, slots=True)
class OllamaShowAnswer:
    """What is known of one model. `model_info` has keys such as `general.architecture`."""

    modelfile: str
    parameters: str
    template: str
    license: str
    modified_at: datetime
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


@dataclass(frozen=True, slots=True)
class OllamaStatus:
    """A step of a pull, or its end: `success`."""

    status: str


@dataclass(frozen=True, slots=True)
class OllamaVersion:
    """The version of this service."""

    version: str
