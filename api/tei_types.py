"""Types of TEI's JSON bodies (Text Embeddings Inference, Hugging Face's embedding server)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from api.tei_errors import TEI, EmptyInputError
from engine.errors import InvalidInputError
from web.dialects import Dialect

MAX_TEXTS = 2048
"""Texts per request. TEI's own default is 32, but its clients send all that they are given."""
CLIENT_BATCH_TEXTS = 32
"""The batch size that `/info` states, which clients use as their own; TEI's default. Larger requests are accepted."""
Direction = Literal["Left", "Right", "left", "right"]
SEND_TEXT = "Send text as strings: token ids are not accepted."
SEND_SENTENCES = "Send an object with 'source_sentence' and 'sentences'."


class TeiOptions(msgspec.Struct, kw_only=True):
    """TEI's options of embedding. An absent one has TEI's default; unknown ones are ignored."""

    truncate: Annotated[
        bool | None,
        Meta(description="Default: true, a text longer than the model's input is cut. false: it is rejected."),
    ] = None
    truncation_direction: Annotated[
        Direction | None,
        Meta(
            description="The end at which a text is cut. Default: as the model's tokenizer is configured, mostly right."
        ),
    ] = None
    prompt_name: Annotated[
        str | None,
        Meta(description="Puts the model's prompt before each text: `query`, or `document` (also `passage`)."),
    ] = None
    normalize: Annotated[bool | None, Meta(description="Default: true, vectors have length 1.")] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Keep this many numbers of each vector.", extra_json_schema={"extra": {"minimum": 1}}),
    ] = None


class TeiBody(TeiOptions, kw_only=True):
    """What the bodies of all TEI routes have in common. The options may also be in `parameters`."""

    KEY: ClassVar[str] = "inputs"
    DIALECT: ClassVar[Dialect] = TEI
    TYPE_HINTS: ClassVar[Mapping[str, str]] = {"inputs": SEND_TEXT, "inputs[]": SEND_TEXT}

    model: Annotated[str | None, Meta(description="Default: the model in the URL, or the service's default model.")] = (
        None
    )
    parameters: TeiOptions | None = None

    @property
    def options(self) -> TeiOptions:
        """The options, those in `parameters` included."""
        nested = self.parameters or TeiOptions()
        names = TeiOptions.__struct_fields__
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return TeiOptions(**{**{name: getattr(nested, name) for name in names}, **own})


Texts = Annotated[str | list[str], Meta(description="One text, or up to 2,048.")]


class TeiSentences(msgspec.Struct):
    """A sentence, and those to compare it with."""

    source_sentence: str
    sentences: Annotated[list[str], Meta(description="Up to 2,048.")]


class TeiEmbedRequest(TeiBody, kw_only=True):
    """Texts to embed."""

    inputs: Texts


class TeiSimilarityRequest(TeiBody, kw_only=True):
    """Sentences to compare."""

    TYPE_HINTS: ClassVar[Mapping[str, str]] = {"inputs": SEND_SENTENCES}

    inputs: TeiSentences


class TeiRequest(TeiBody, kw_only=True):
    """Texts to embed, or sentences to compare."""

    inputs: str | list[str] | TeiSentences


class TeiTokenizeRequest(TeiBody, kw_only=True):
    """Texts to tokenise."""

    inputs: Texts
    add_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class TeiToken:
    """One token; `start` and `stop` are characters of the text with its prompt, null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class TeiPooling:
    """How the model makes one vector of those of the tokens."""

    pooling: str


@dataclass(frozen=True, slots=True)
class TeiModelType:
    """The kind of the model."""

    embedding: TeiPooling


@dataclass(frozen=True, slots=True, kw_only=True)
class TeiInfo:
    """The model and the service. Numbers with a default are TEI's own; nothing here depends on them."""

    model_id: str
    model_sha: str | None
    model_dtype: str = "float32"
    model_type: TeiModelType
    max_concurrent_requests: int = 512
    max_input_length: int
    max_batch_tokens: int = 16_384
    max_batch_requests: int | None = None
    max_client_batch_size: int = CLIENT_BATCH_TEXTS
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str
    sha: str | None = None
    docker_label: str | None = None


def texts_of(inputs: str | list[str], field: str = "inputs") -> list[str]:
    """Return the texts of a request.

    Raises:
        EmptyInputError: there are none.
        InvalidInputError: there are more than MAX_TEXTS.
    """
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not texts:
        raise EmptyInputError(field)
    if len(texts) > MAX_TEXTS:
        raise InvalidInputError(
            f"batch size {len(texts)} > maximum allowed batch size {MAX_TEXTS}",
            extensions={"field": field, "limit": MAX_TEXTS},
        )
    return texts
