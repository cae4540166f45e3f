"""Types of the native API's JSON bodies, and the limits of their texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec
from litestar.params import HeaderParameter
from msgspec import Meta

from engine.errors import InvalidInputError
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions, LongText, Truncate
from engine.vectors import Dtype


def _did_you_mean(field: str, *names: str) -> dict[str, str]:
    """Return the hint to use *field* for each of *names*."""
    return dict.fromkeys(names, f"Did you mean {field!r}?")


ONE_TEXT = (
    "input",
    "inputs",
    "prompt",
    "sentence",
    "content",
    "query",
    "document",
    "passage",
    "string",
    "data",
    "body",
)
SEVERAL_TEXTS = ("sentences", "documents", "passages", "queries", "prompts", "contents", "strings", "items")
"""Names of one text and of several texts in other APIs, and in people's first guesses."""
MODEL_HINTS = {
    **_did_you_mean("model_name", "model", "model_id", "embedding_model"),
    **_did_you_mean("input_type", "task", "task_type", "prompt_name"),
}
OPTION_HINTS = {
    **MODEL_HINTS,
    **_did_you_mean("dimensions", "dims", "size", "output_dimension", "output_dimensionality"),
    **_did_you_mean("dtype", "output_dtype", "embedding_type", "embedding_types", "precision", "quantization"),
    **_did_you_mean("normalize", "normalize_embeddings", "l2_normalize"),
    **_did_you_mean("encoding", "encoding_format"),
}

Encoding = Literal["list", "base64"]

Timeout = Annotated[
    float | None,
    HeaderParameter(
        name="X-Request-Timeout",
        gt=0,
        description="Seconds to wait, up to REQUEST_TIMEOUT.",
        schema_extra={"exclusiveMinimum": 0},  # Litestar leaves `gt` out of the schema of a type that may be null
    ),
]

ModelName = Annotated[str | None, Meta(description="Default: the first model of REQUIRED_MODELS.")]
_NOT_BLANK = {"type": "string", "minLength": 1, "pattern": r"\S"}
"""For the OpenAPI document only: `TextLimits` checks it, and its error names the text."""
TextsField = Annotated[
    list[str],
    Meta(
        description="1 to MAX_BATCH_SIZE texts, none of them blank.",
        extra_json_schema={"extra": {"minItems": 1, "items": _NOT_BLANK}},
    ),
]
InputTypeField = Annotated[
    InputType | None,
    Meta(description="Puts the model's prompt for this type before each text. `/models/{name}` shows the prompts."),
]


class EmbedOptionsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Options of embedding: the model, and how it embeds. By default, vectors are as FastEmbed returns them."""

    FIELD_HINTS: ClassVar[Mapping[str, str]] = OPTION_HINTS

    model_name: ModelName = None
    input_type: InputTypeField = None
    truncate: Annotated[
        Truncate | None,
        Meta(
            description="The end at which a text longer than the model's input is cut; `none` rejects such a text. "
            "Default: as the model's tokenizer is configured, which is `end` for nearly all."
        ),
    ] = None
    long_text: Annotated[
        LongText,
        Meta(
            description="What to do with a text longer than the model's input. `truncate` cuts it. `mean` embeds it in "
            "windows and averages their vectors, weighted by tokens. `chunks` returns one vector per window, with the "
            "window's characters."
        ),
    ] = "truncate"
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Keep this many numbers of each vector and scale it back to length 1. For models trained for "
            "it (Matryoshka).",
            extra_json_schema={"extra": {"minimum": 1}},
        ),
    ] = None
    allow_untrained_dimensions: Annotated[
        bool, Meta(description="Shorten vectors even if the model was not trained for it.")
    ] = False
    normalize: Annotated[
        bool | None,
        Meta(
            description="true: scale vectors to length 1. false: leave them as FastEmbed returns them, apart from "
            "`dimensions` and `mean`. Default: as FastEmbed returns them, but length 1 after `dimensions` or `mean`."
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        Meta(
            description="Type of the numbers. `int8` is round(127 x) of vectors at length 1, `uint8` the same plus "
            "128. `ubinary` is one bit per number (1 above zero), highest bit first; `binary` is these bytes minus 128."
        ),
    ] = "float32"
    encoding: Annotated[
        Encoding, Meta(description="`base64` returns each vector's bytes, little-endian, instead of a list.")
    ] = "list"

    @property
    def options(self) -> EmbedOptions:
        """The same options as the engine's type."""
        options = (
            self.input_type,
            self.truncate,
            self.long_text,
            self.dimensions,
            self.allow_untrained_dimensions,
            self.normalize,
            self.dtype,
        )
        return DEFAULTS if options == _DEFAULT_OPTIONS else EmbedOptions(*options)


_DEFAULT_OPTIONS = (None, None, "truncate", None, False, None, "float32")


def _as_openai(field: str) -> dict[str, str]:
    """Return the hint for `input`, which callers of OpenAI's API send: to use *field*, or that API."""
    return {"input": f"Did you mean {field!r}? Clients of OpenAI's API send 'input' to POST /v1/embeddings."}


class EmbedRequest(EmbedOptionsBody, kw_only=True):
    """One text to embed."""

    FIELD_HINTS = {
        **OPTION_HINTS,
        **_did_you_mean("text", *ONE_TEXT),
        **_as_openai("text"),
        **dict.fromkeys(("texts", *SEVERAL_TEXTS), "For several texts, send 'texts' to POST /embed/batch."),
    }

    TYPE_HINTS: ClassVar[Mapping[str, str]] = {"text": "For several texts, send 'texts' to POST /embed/batch."}

    text: Annotated[
        str,
        Meta(description="Not blank; at most MAX_TEXT_LENGTH characters.", extra_json_schema={"extra": _NOT_BLANK}),
    ]


class EmbedBatchRequest(EmbedOptionsBody, kw_only=True):
    """Several texts to embed."""

    FIELD_HINTS = {
        **OPTION_HINTS,
        **_did_you_mean("texts", *ONE_TEXT, *SEVERAL_TEXTS),
        **_as_openai("texts"),
        "text": "For one text, use POST /embed; here 'texts' is a list.",
    }
    TYPE_HINTS: ClassVar[Mapping[str, str]] = {"texts": "Send a list, or 'text' to POST /embed."}

    texts: TextsField


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Texts whose tokens to count."""

    FIELD_HINTS: ClassVar[Mapping[str, str]] = {
        **MODEL_HINTS,
        **_did_you_mean("texts", "text", *ONE_TEXT, *SEVERAL_TEXTS),
    }

    texts: TextsField
    model_name: ModelName = None
    input_type: InputTypeField = None
    return_tokens: Annotated[bool, Meta(description="Also return each token, its id and its characters.")] = False


@dataclass(frozen=True, slots=True)
class TextLimits:
    """The limits of a request's texts."""

    max_characters: int
    max_texts: int

    def check_text(self, text: str) -> None:
        """Check the text of a request that has only one.

        Raises:
            InvalidInputError: it is blank or too long; with the extensions `field` and `limit`.
        """
        self._check(text, "text")

    def check_texts(self, texts: Sequence[str]) -> None:
        """Check all texts of a request.

        Raises:
            InvalidInputError: there are none or too many, or one is blank or too long; with the extensions `field`,
                `index` and `limit`.
        """
        if not texts:
            raise InvalidInputError(
                "texts: the list is empty; send at least 1 text.", extensions={"field": "texts", "limit": 1}
            )
        if len(texts) > self.max_texts:
            raise InvalidInputError(
                f"texts: {len(texts)} texts are more than the {self.max_texts} allowed in one request.",
                extensions={"field": "texts", "limit": self.max_texts},
            )
        for index, text in enumerate(texts):
            self._check(text, "texts", index)

    def _check(self, text: str, field: str, index: int | None = None) -> None:
        is_blank = not text or text.isspace()
        if not is_blank and len(text) <= self.max_characters:
            return
        place, extensions = field, dict[str, object](field=field)
        if index is not None:
            place, extensions = f"{field}[{index}]", {**extensions, "index": index}
        if is_blank:
            raise InvalidInputError(f"{place}: the text is {'blank' if text else 'empty'}.", extensions=extensions)
        raise InvalidInputError(
            f"{place}: {len(text)} characters are more than the {self.max_characters} allowed in one text.",
            extensions={**extensions, "limit": self.max_characters},
        )
