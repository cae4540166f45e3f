"""Names of models as the clients of other servers write them."""

from engine.catalog import Model
from engine.embedder import Embedder


class ModelNames:
    """Finds models by the names that dialects accept."""

    def __init__(self, embedder: Embedder) -> None:
        """Resolve to the models of *embedder*."""
        self._embedder = embedder

    def resolve(self, name: str | None) -> Model:
        """Return the model with this *name*; None or empty: the default model.

        Raises:
            UnknownModelError: there is none.
            ModelNotAllowedError: it exists, but is not allowed.
        """
        return self._embedder.resolve_model(name) if name else self._embedder.default_model
