"""The options of an embedding request: how its texts are preprocessed, and how its vectors are postprocessed."""

from dataclasses import dataclass
from typing import Literal

from engine.catalog import Model
from engine.errors import InvalidInputError
from engine.model_cards import InputType
from engine.vectors import Dtype

Truncate = Literal["end", "start", "none"]
LongText = Literal["truncate", "mean", "chunks"]


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """The options of one request. The defaults return the vectors as FastEmbed computes them.

    Attributes:
        input_type: what the texts are used for; selects the model's prompt, which is put before each text. None: no
            prompt.
        truncate: the end at which a text that is too long loses tokens. ``none`` rejects such a text. None: the
            default of the model's tokenizer, for nearly all models the end.
        long_text: what to do with a text that is longer than the model's input. ``truncate`` cuts it off. ``mean`` and
            ``chunks`` split it into windows: ``mean`` returns the weighted mean of their vectors, ``chunks`` returns
            one vector per window.
        dimensions: keep this many leading numbers of each vector. None: all.
        allow_untrained_dimensions: accept *dimensions* that the model was not trained for.
        normalize: whether vectors are scaled to length 1. None: only after *dimensions*, ``mean`` or a conversion to
            8 bits has changed them.
        dtype: the type of the returned numbers; see `engine.vectors.convert`.
        allow_blank: accept texts of which the model sees only special tokens. They all have the same vector.
        clip: drop the characters that are far beyond the model's input before a text is tokenised; see
            `engine.pipeline.clip`. The text counts as truncated, and its tokens without those that were dropped.
        max_tokens: cut texts to this many tokens, prompt and special tokens included; at least one token of the text
            is left. None, or more than the model's input: cut them to that. Only with ``truncate``.
    """

    input_type: InputType | None = None
    truncate: Truncate | None = None
    long_text: LongText = "truncate"
    dimensions: int | None = None
    allow_untrained_dimensions: bool = False
    normalize: bool | None = None
    dtype: Dtype = "float32"
    allow_blank: bool = False
    clip: bool = False
    max_tokens: int | None = None

    @property
    def needs_unit_length(self) -> bool:
        """Whether the vectors must be scaled to length 1, whatever length the model returns."""
        if self.normalize is not None:
            return self.normalize
        return self.dimensions is not None or self.long_text == "mean" or self.dtype in {"int8", "uint8"}

    def check(self, model: Model) -> None:
        """Check that the options do not contradict each other, and that *model* supports them.

        Raises:
            InvalidInputError: they do, or it does not; the error names the field and what is allowed.
        """
        if self.truncate is not None and self.long_text != "truncate":
            raise InvalidInputError(
                f"truncate: long_text={self.long_text!r} embeds all of the text, so the two exclude each other. "
                "Leave one of them out.",
                extensions={"field": "truncate"},
            )
        if self.normalize is False and self.dtype in {"int8", "uint8"}:
            raise InvalidInputError(
                f"normalize: dtype={self.dtype!r} needs vectors of length 1, so it excludes normalize=false. "
                "Leave normalize out, or choose another dtype.",
                extensions={"field": "normalize"},
            )
        if self.dimensions is not None:
            self._check_dimensions(model, self.dimensions)

    def _check_dimensions(self, model: Model, wanted: int) -> None:
        extensions: dict[str, object] = {"field": "dimensions", "limit": model.dim}
        if not 1 <= wanted <= model.dim:
            raise InvalidInputError(
                f"dimensions: {wanted} is not between 1 and {model.dim}, the number of dimensions of {model.name!r}.",
                extensions=extensions,
            )
        trained = model.card.matryoshka
        if wanted == model.dim or self.allow_untrained_dimensions or (trained and trained.allows(wanted)):
            return
        reason = f"was trained for {trained}" if trained else "was not trained for shorter vectors"
        raise InvalidInputError(
            f"dimensions: {wanted} is not supported by {model.name!r}, which {reason}.",
            hint="Set allow_untrained_dimensions=true to use it anyway.",
            extensions=extensions,
        )


DEFAULTS = EmbedOptions()
