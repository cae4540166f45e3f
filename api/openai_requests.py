"""The request of OpenAI's embeddings, with the further fields of Voyage, Jina, NVIDIA NIM and vLLM."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from api.model_names import ModelNames
from api.openai_inputs import Input
from engine.catalog import Model
from engine.errors import InvalidInputError, UnknownModelError
from engine.model_cards import InputType
from engine.options import EmbedOptions, Truncate
from engine.vectors import Dtype

INPUT_TYPES: Mapping[str, InputType] = {"query": "query", "document": "document", "passage": "document"}
"""Voyage's and NIM's `input_type`, and the last part of Jina's `task`. Other tasks have no prompt."""
MODEL_SUFFIXES: Mapping[str, InputType] = {"-query": "query", "-passage": "document"}
"""NIM: the end of the model's name is the type of the texts."""
TRUNCATIONS: Mapping[object, Truncate | None] = {
    None: None,
    True: None,
    "END": "end",
    False: "none",
    "NONE": "none",
    "START": "start",
}

_INPUT = "Send a text, a list of texts, or token ids."
_TRUNCATE = "false, NONE: reject texts that are longer than the model's input. Default: cut them at the end."


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """Texts to embed. Unknown fields are ignored, and null means that a field is absent."""

    TYPE_HINTS: ClassVar[Mapping[str, str]] = {"input": _INPUT, "input[]": _INPUT}

    input: Annotated[
        Input,
        Meta(
            description="One text; a list of up to 2,048 texts, or of objects with a `text`; the ids of one text's "
            "tokens in OpenAI's vocabulary cl100k_base; a list of lists of such ids."
        ),
    ]
    model: Annotated[
        str | None, Meta(description="A model, or an alias of one. Default: the first of REQUIRED_MODELS.")
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`base64` returns each vector's bytes, little-endian, instead of a list. Default: `float`."),
    ] = None
    dimensions: Annotated[
        int | None, Meta(description="Keep this many numbers of each vector. For models trained for it (Matryoshka).")
    ] = None
    input_type: Annotated[
        Literal["query", "document", "passage"] | None,
        Meta(description="Voyage, NIM: puts the model's prompt for this type before each text."),
    ] = None
    truncation: Annotated[bool | None, Meta(description=f"Voyage. {_TRUNCATE}")] = None
    output_dimension: Annotated[int | None, Meta(description="Voyage: the same as `dimensions`.")] = None
    output_dtype: Annotated[
        Literal["float", "int8", "uint8", "binary", "ubinary"] | None,
        Meta(description="Voyage: type of the numbers. With `base64`, their bytes."),
    ] = None
    task: Annotated[
        str | None,
        Meta(description="Jina: `retrieval.query` and `retrieval.passage` put the model's prompt before each text."),
    ] = None
    late_chunking: Annotated[bool | None, Meta(description="Jina: true is not supported.")] = None
    embedding_type: Annotated[
        Literal["float", "base64", "int8", "uint8", "binary", "ubinary"] | None,
        Meta(description="Jina, NIM: type of the numbers, or `base64` for the bytes of float32 numbers."),
    ] = None
    normalized: Annotated[
        bool | None, Meta(description="Jina: false leaves the vectors' length as the model returns it.")
    ] = None
    truncate: Annotated[bool | Literal["NONE", "START", "END"] | None, Meta(description=f"Jina, NIM. {_TRUNCATE}")] = (
        None
    )
    truncate_prompt_tokens: Annotated[
        int | None, Meta(description="vLLM: -1 or at least the model's input; shorter texts are not supported.")
    ] = None

    @property
    def is_base64(self) -> bool:
        return self.encoding_format == "base64" or self.embedding_type == "base64"

    @property
    def encoding_formats(self) -> tuple[str, ...]:
        """The formats that the request names."""
        return tuple(filter(None, (self.encoding_format, self.output_dtype, self.embedding_type)))

    def options(self, suffix: InputType | None) -> EmbedOptions:
        """Return the same options as the engine's type; *suffix* is the type that the model's name states.

        Raises:
            InvalidInputError: the request asks for late chunking.
        """
        if self.late_chunking:
            raise InvalidInputError(
                "late_chunking: late chunking is not supported. Send each chunk as a text, or leave it out.",
                extensions={"field": "late_chunking"},
            )
        kind = self.input_type or (self.task or "").rpartition(".")[2]
        return EmbedOptions(
            input_type=INPUT_TYPES.get(kind, suffix),
            truncate=TRUNCATIONS[self.truncate if self.truncation is None else self.truncation],
            dimensions=self.output_dimension if self.dimensions is None else self.dimensions,
            normalize=self.normalized is not False,
            dtype=self._dtype,
            allow_blank=True,
        )

    def check_cut(self, max_tokens: int | None) -> None:
        """Check that `truncate_prompt_tokens` does not require a cut below *max_tokens*, the model's input.

        Raises:
            InvalidInputError: it does.
        """
        wanted = self.truncate_prompt_tokens
        if wanted is not None and wanted != -1 and (max_tokens is None or wanted < max_tokens):
            raise InvalidInputError(
                "truncate_prompt_tokens: texts can only be cut to the model's input, which is "
                f"{max_tokens or 'not known before the model is loaded'}. Send -1 for it, or leave the field out.",
                extensions={"field": "truncate_prompt_tokens"},
            )

    @property
    def _dtype(self) -> Dtype:
        wanted = self.output_dtype or self.embedding_type
        return "float32" if wanted in {None, "float", "base64"} else wanted  # type: ignore[return-value]


def find_model(names: ModelNames, name: str | None) -> tuple[Model, InputType | None]:
    """Return the model with this name, and the type of texts that the end of the name states, if any.

    Raises:
        UnknownModelError: there is no such model, with that end or without.
    """
    try:
        return names.resolve(name), None
    except UnknownModelError as error:
        for suffix, input_type in MODEL_SUFFIXES.items():
            if name and name.endswith(suffix):
                try:
                    return names.resolve(name.removesuffix(suffix)), input_type
                except UnknownModelError:
                    break
        raise error from None
