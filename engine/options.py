"""What a caller may ask for, besides the texts: how they are read, and what becomes of their vectors."""

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
    """The options of one request; the defaults give the vectors as FastEmbed does.

    Attributes:
        input_type: what the texts are; the model's prompt for it is put before each. None: no prompt.
        truncate: which end of a text that is too long is cut off, or `none`: such a text is refused. None: as the
            model's tokenizer is set up, which is the end for nearly all.
        long_text: what becomes of a text that is longer than the model's input: it is cut, or embedded in windows of
            which the `mean` is the text's vector, or of which each (`chunks`) has a vector of its own.
        dimensions: numbers that are left of each vector; None: all.
        allow_untrained_dimensions: cut vectors even of a model that was not trained for it.
        normalize: True: length 1. False: nothing is done to the vectors after FastEmbed, save a cut or a mean. None:
            as FastEmbed gives them, and length 1 after a cut or a mean.
        dtype: see `engine.vectors.convert`.
    """

    input_type: InputType | None = None
    truncate: Truncate | None = None
    long_text: LongText = "truncate"
    dimensions: int | None = None
    allow_untrained_dimensions: bool = False
    normalize: bool | None = None
    dtype: Dtype = "float32"

    @property
    def needs_unit_length(self) -> bool:
        """Whether the vectors must be at length 1 whatever the model gives."""
        if self.normalize is not None:
            return self.normalize
        return self.dimensions is not None or self.long_text == "mean" or self.dtype in {"int8", "uint8"}

    def check(self, model: Model) -> None:
        """See whether the options agree with each other and with *model*.

        Raises:
            InvalidInputError: they do not; it names the field and what is allowed.
        """
        if self.truncate is not None and self.long_text != "truncate":
            raise InvalidInputError(
                f"truncate: with long_text={self.long_text!r} nothing is cut off, so the two exclude each other; "
                "leave one of them out.",
                extensions={"field": "truncate"},
            )
        if self.normalize is False and self.dtype in {"int8", "uint8"}:
            raise InvalidInputError(
                f"normalize: {self.dtype} is made of vectors of length 1, so it excludes normalize=false; "
                "leave normalize out, or ask for another dtype.",
                extensions={"field": "normalize"},
            )
        if self.dimensions is not None:
            self._check_dimensions(model, self.dimensions)

    def _check_dimensions(self, model: Model, wanted: int) -> None:
        facts: dict[str, object] = {"field": "dimensions", "limit": model.dim}
        if not 1 <= wanted <= model.dim:
            raise InvalidInputError(
                f"dimensions: {wanted} is not between 1 and the {model.dim} that a vector of {model.name!r} has.",
                extensions=facts,
            )
        trained = model.card.matryoshka
        if wanted == model.dim or self.allow_untrained_dimensions or (trained and trained.allows(wanted)):
            return
        told = f"it was trained for {trained}" if trained else "it was not trained to have its vectors cut"
        raise InvalidInputError(
            f"dimensions: {model.name!r} should not be cut to {wanted}: {told}. "
            "Send allow_untrained_dimensions=true to have it all the same.",
            extensions=facts,
        )


DEFAULTS = EmbedOptions()
