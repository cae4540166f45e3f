"""What callers send to the service's own routes, and the rules that their texts must keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engine.errors import InvalidInputError
from engine.model_cards import InputType
from engine.options import DEFAULTS, EmbedOptions, LongText, Truncate
from engine.vectors import Dtype

Encoding = Literal["list", "base64"]

ModelName = Annotated[str | None, Meta(description="Default: the first of REQUIRED_MODELS.")]
_NOT_BLANK = {"type": "string", "minLength": 1, "pattern": r"\S"}
"""Only for OpenAPI: `TextLimits` checks it, and says which text is wrong in better words."""
TextsField = Annotated[
    list[str],
    Meta(
        description="1 to MAX_BATCH_SIZE texts, none of them blank.",
        extra_json_schema={"extra": {"minItems": 1, "items": _NOT_BLANK}},
    ),
]
InputTypeField = Annotated[
    InputType | None,
    Meta(description="Puts the model's prompt for it before each text; `/models/{name}` tells the prompts."),
]


class EmbedOptionsBody(msgspec.Struct, forbid_unknown_fields=True):
    """How texts are read, and what becomes of their vectors. Left out, vectors are as FastEmbed gives them."""

    model_name: ModelName = None
    input_type: InputTypeField = None
    truncate: Annotated[
        Truncate | None,
        Meta(
            description="Where a text longer than the model's input is cut; `none` refuses it. "
            "Default: as the model's tokenizer is set up, which is `end` for nearly all."
        ),
    ] = None
    long_text: Annotated[
        LongText,
        Meta(
            description="A text longer than the model's input: `truncate` cuts it; `mean` embeds it in windows and "
            "averages their vectors, weighted by tokens; `chunks` gives one vector per window, with its characters."
        ),
    ] = "truncate"
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Keep so many numbers of each vector, at length 1 again; for models trained for it.",
            extra_json_schema={"extra": {"minimum": 1}},
        ),
    ] = None
    allow_untrained_dimensions: Annotated[
        bool, Meta(description="Cut vectors even where the model was not trained for it.")
    ] = False
    normalize: Annotated[
        bool | None,
        Meta(
            description="true: length 1. false: nothing is done after FastEmbed, save a cut or a mean. "
            "Default: as FastEmbed gives the vectors, and length 1 after a cut or a mean."
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        Meta(
            description="`int8` is round(127 x) and `uint8` the same plus 128, of vectors at length 1; `ubinary` is a "
            "bit per number (1 above zero), highest bit first, and `binary` these bytes less 128."
        ),
    ] = "float32"
    encoding: Annotated[
        Encoding, Meta(description="`base64` of each vector's numbers, little-endian, instead of a list.")
    ] = "list"

    @property
    def options(self) -> EmbedOptions:
        """The same for the engine."""
        told = (
            self.input_type,
            self.truncate,
            self.long_text,
            self.dimensions,
            self.allow_untrained_dimensions,
            self.normalize,
            self.dtype,
        )
        return DEFAULTS if told == _NOTHING_ASKED else EmbedOptions(*told)


_NOTHING_ASKED = (None, None, "truncate", None, False, None, "float32")


class EmbedRequest(EmbedOptionsBody, kw_only=True):
    """One text to embed."""

    text: Annotated[
        str,
        Meta(description="Not blank; at most MAX_TEXT_LENGTH characters.", extra_json_schema={"extra": _NOT_BLANK}),
    ]


class EmbedBatchRequest(EmbedOptionsBody, kw_only=True):
    """Several texts to embed."""

    texts: TextsField


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Texts whose tokens are to be counted."""

    texts: TextsField
    model_name: ModelName = None
    input_type: InputTypeField = None
    return_tokens: Annotated[bool, Meta(description="Tell each token, its id and its characters, too.")] = False


@dataclass(frozen=True, slots=True)
class TextLimits:
    """What a request's texts must keep."""

    max_characters: int
    max_texts: int

    def check_text(self, text: str) -> None:
        """Check the only text of a request.

        Raises:
            InvalidInputError: blank or too long; it names field and limit.
        """
        self._check(text, "text", {"field": "text"})

    def check_texts(self, texts: Sequence[str]) -> None:
        """Check all texts of a request.

        Raises:
            InvalidInputError: none, too many, or one blank or too long; it names field, index and limit.
        """
        if not texts:
            raise InvalidInputError(
                "texts: the list is empty; send 1 text or more.", facts={"field": "texts", "limit": 1}
            )
        if len(texts) > self.max_texts:
            raise InvalidInputError(
                f"texts: {len(texts)} texts are more than the {self.max_texts} that one request may hold.",
                facts={"field": "texts", "limit": self.max_texts},
            )
        for index, text in enumerate(texts):
            self._check(text, f"texts[{index}]", {"field": "texts", "index": index})

    def _check(self, text: str, place: str, facts: dict[str, object]) -> None:
        if not text or text.isspace():
            raise InvalidInputError(f"{place}: the text is {'blank' if text else 'empty'}.", facts=facts)
        if len(text) > self.max_characters:
            raise InvalidInputError(
                f"{place}: {len(text)} characters are more than the {self.max_characters} that a text may have.",
                facts={**facts, "limit": self.max_characters},
            )
