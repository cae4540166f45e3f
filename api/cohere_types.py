"""Types of Cohere's JSON bodies and answers."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.errors import InvalidInputError
from engine.model_cards import InputType
from engine.options import EmbedOptions, Truncate

MAX_TEXTS = 2048
"""Cohere's own server accepts 96. Its clients for v2 do not split requests, so a higher limit helps them."""
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
InputTypeName = Literal["search_document", "search_query", "classification", "clustering", "image"]
INPUT_TYPES: dict[InputTypeName | None, InputType] = {"search_query": "query", "search_document": "document"}
"""The input types for which models have prompts."""
SIDES: dict[str | None, Truncate] = {"NONE": "none", "START": "start"}
"""Our names of Cohere's values of `truncate`; its default is to cut the end."""


class CoherePart(msgspec.Struct, gc=False):
    """A part of an input. Parts of other types than text are rejected."""

    type: Annotated[str | None, Meta(extra_json_schema={"extra": {"enum": ["text", None]}})] = None
    text: Annotated[str | None, Meta(extra_json_schema={"extra": {"type": "string"}})] = None


class CohereInput(msgspec.Struct, gc=False):
    """One input, which gets one vector; several parts are joined by line breaks."""

    # A tuple, and no `gc`: millions of lists would keep the garbage collector busy for a second.
    content: Annotated[tuple[CoherePart, ...], Meta(extra_json_schema={"extra": {"minItems": 1}})]


class CohereEmbedRequest(msgspec.Struct):
    """Texts to embed. Other fields are ignored; null means that a field is absent."""

    model: Annotated[str | None, Meta(description="Default: the first model of REQUIRED_MODELS.")] = None
    texts: Annotated[list[str] | None, Meta(description=f"1 to {MAX_TEXTS} texts; or send `inputs`.")] = None
    inputs: Annotated[
        list[CohereInput] | None,
        Meta(description="The same in Cohere's newer form, with parts of the type `text` only."),
    ] = None
    images: Annotated[
        list[str] | None,
        Meta(description="Rejected: the service embeds text only.", extra_json_schema={"extra": {"maxItems": 0}}),
    ] = None
    input_type: Annotated[
        InputTypeName | None,
        Meta(
            description="`search_query` and `search_document` put the model's prompt before each text; the others and "
            "none add nothing."
        ),
    ] = None
    embedding_types: Annotated[
        list[EmbeddingType] | None,
        Meta(description="Types of the vectors in the answer; default: `float`. In v1 without it: a bare list."),
    ] = None
    output_dimension: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Keep this many numbers of each vector. For models trained for it (Matryoshka).",
            extra_json_schema={"extra": {"minimum": 1}},
        ),
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        Meta(
            description="The end at which a text longer than the model's input is cut; `NONE` rejects it. Default: END."
        ),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Cut texts to this many tokens, if that is less than the model's input; special tokens count.",
            extra_json_schema={"extra": {"minimum": 1}},
        ),
    ] = None

    def all_texts(self) -> list[str]:
        """Return the texts of the request, from the one field that has them.

        Raises:
            InvalidInputError: there are none, too many, or something other than texts.
        """
        if self.images:
            raise InvalidInputError("images: images cannot be embedded, only texts.", extensions={"field": "images"})
        if self.texts and self.inputs:
            raise InvalidInputError(
                "inputs: send either 'texts' or 'inputs', not both.", extensions={"field": "inputs"}
            )
        count = len(self.texts or self.inputs or ())
        if not count:
            raise InvalidInputError(
                "texts: at least one text must be provided, in 'texts' or in 'inputs'.",
                extensions={"field": "texts", "limit": 1},
            )
        if count > MAX_TEXTS:
            field = "texts" if self.texts else "inputs"
            raise InvalidInputError(
                f"{field}: the total number of texts must be at most {MAX_TEXTS} - received {count}.",
                extensions={"field": field, "limit": MAX_TEXTS},
            )
        return self.texts or [_joined(entry, index) for index, entry in enumerate(self.inputs or ())]

    @property
    def kinds(self) -> list[EmbeddingType]:
        """The types of vectors to answer with, each once, the largest one first, because it is not kept in memory."""
        asked: list[EmbeddingType] = list(dict.fromkeys(self.embedding_types or ["float"]))
        return sorted(asked, key=lambda kind: kind != "float")

    @property
    def native_input_type(self) -> InputType | None:
        return INPUT_TYPES.get(self.input_type)

    @property
    def options(self) -> EmbedOptions:
        """The options as the engine's type."""
        side = SIDES.get(self.truncate, "end")
        return EmbedOptions(
            input_type=self.native_input_type,
            truncate=side,
            dimensions=self.output_dimension,
            normalize=True,
            allow_blank=True,
            clip=True,
            max_tokens=self.max_tokens,
        )


def _joined(entry: CohereInput, index: int) -> str:
    texts = [part.text for part in entry.content if part.type in {None, "text"} and part.text is not None]
    if len(texts) < len(entry.content) or not texts:
        raise InvalidInputError(
            f"inputs[{index}]: each part of its content must have the type 'text' and a text.",
            extensions={"field": "inputs", "index": index},
        )
    return "\n".join(texts)


Floats = list[list[float]]
Integers = list[list[int]]


class CohereVectors(msgspec.Struct):
    """The vectors by type, each in the order of the texts. Types that were not requested are absent."""

    float: Floats | UnsetType = UNSET
    int8: Integers | UnsetType = UNSET
    uint8: Integers | UnsetType = UNSET
    binary: Integers | UnsetType = UNSET
    ubinary: Integers | UnsetType = UNSET
    base64: list[str] | UnsetType = UNSET


class CohereVersion(msgspec.Struct):
    """The version of the API that answered."""

    version: Literal["1", "2"]


class CohereUnits(msgspec.Struct):
    """`input_tokens`: tokens that the model ran, with prompts and special tokens, after long texts were cut."""

    input_tokens: int


class CohereMeta(msgspec.Struct):
    """Facts about the answer."""

    api_version: CohereVersion
    billed_units: CohereUnits


class CohereEmbedAnswer(msgspec.Struct):
    """Vectors by type."""

    id: str
    embeddings: CohereVectors
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]


class CohereFloatsAnswer(msgspec.Struct):
    """Vectors as bare lists of numbers: the answer of v1 if `embedding_types` is absent."""

    id: str
    embeddings: Floats
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_floats"]
