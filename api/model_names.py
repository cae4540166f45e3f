"""Names by which clients of other servers call our models: any case, `:latest`, MODEL_ALIASES and Ollama's names."""

from collections.abc import Callable, Mapping

from engine.catalog import Catalog, Model, closest_names
from engine.embedder import Embedder
from engine.errors import MAX_SHOWN_NAME_CHARACTERS, UnknownModelError

LATEST = ":latest"
"""The tag that Ollama adds to a name without one. It means the name itself."""
OLLAMA_DEFAULTS = ("registry.ollama.ai/", "library/")
"""The parts of a full name in Ollama's registry that clients may leave out."""

OLLAMA_TAGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sentence-transformers/all-MiniLM-L6-v2": ("all-minilm", ("", "l6-v2", "22m", "22m-l6-v2-fp16")),
    "BAAI/bge-large-en-v1.5": ("bge-large", ("", "335m", "335m-en-v1.5-fp16")),
    "google/embeddinggemma-300m": ("embeddinggemma", ("", "300m", "300m-bf16")),
    "mixedbread-ai/mxbai-embed-large-v1": ("mxbai-embed-large", ("", "v1", "335m", "335m-v1-fp16")),
    "nomic-ai/nomic-embed-text-v1.5": ("nomic-embed-text", ("", "v1.5", "137m-v1.5-fp16")),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": (
        "paraphrase-multilingual",
        ("", "278m", "278m-mpnet-base-v2-fp16"),
    ),
    # The name without a tag is the model of 8 billion parameters, which FastEmbed does not have.
    "Qwen/Qwen3-Embedding-0.6B": ("qwen3-embedding", ("0.6b", "0.6b-fp16")),
    "snowflake/snowflake-arctic-embed-l": ("snowflake-arctic-embed", ("", "l", "335m", "335m-l-fp16")),
    "snowflake/snowflake-arctic-embed-m-long": ("snowflake-arctic-embed", ("m-long", "137m", "137m-m-long-fp16")),
    "snowflake/snowflake-arctic-embed-m": ("snowflake-arctic-embed", ("m", "110m", "110m-m-fp16")),
    "snowflake/snowflake-arctic-embed-s": ("snowflake-arctic-embed", ("s", "33m", "33m-s-fp16")),
    "snowflake/snowflake-arctic-embed-xs": ("snowflake-arctic-embed", ("xs", "22m", "22m-xs-fp16")),
}
"""The models that Ollama's library and FastEmbed both have: FastEmbed's name, with Ollama's name and its tags.

The empty tag is the name alone. Tags of other models, such as `all-minilm:33m` (L12), and of weights that were
trained or rounded to fewer bits are absent: their vectors differ.
"""


def _with_tag(name: str, tag: str) -> str:
    return f"{name}:{tag}" if tag else name


OLLAMA_LIBRARY: Mapping[str, str] = {
    _with_tag(name, tag): model for model, (name, tags) in OLLAMA_TAGS.items() for tag in tags
}
"""FastEmbed's names by the full names in Ollama's library, in lower case."""
SUGGESTED_NAMES = frozenset(_with_tag(name, tags[0]) for name, tags in OLLAMA_TAGS.values())
"""The library names that are suggested instead of an unknown one: the first of each model."""


def fold_name(name: str) -> str:
    """Return *name* as names are compared: in lower case, without `:latest` and Ollama's default registry."""
    folded = name.lower()
    for prefix in OLLAMA_DEFAULTS:
        folded = folded.removeprefix(prefix)
    return folded.removesuffix(LATEST)


class ModelNames:
    """Finds the model that a client means. Real names come first, then MODEL_ALIASES, then Ollama's names."""

    def __init__(
        self, catalog: Catalog, embedder: Callable[[], Embedder], *, default_model: str, aliases: Mapping[str, str]
    ) -> None:
        """Resolve names to models of *catalog*.

        Args:
            catalog: all known models; it may change while the service runs.
            embedder: returns what knows the models that callers may use; called once the service runs.
            default_model: the model of requests that name none.
            aliases: further names of models, each with the real name.
        """
        self._catalog = catalog
        self._embedder = embedder
        self._default_model = default_model
        self._aliases = aliases
        self._folded = {fold_name(alias): target for alias, target in aliases.items()}

    def resolve(self, name: str | None) -> Model:
        """Return the model that *name* means; None or an empty name: the default model.

        Raises:
            UnknownModelError: no model has this name; the error lists the closest names and aliases.
            ModelNotAllowedError: there is one, but callers may not use it.
        """
        model = self.find(name or self._default_model)
        if model is None:
            wanted = name or self._default_model
            error = UnknownModelError(wanted, self._closest(wanted))
            error.extensions["model"] = wanted[:MAX_SHOWN_NAME_CHARACTERS]
            raise error
        return self._embedder().resolve_model(model.name)

    def find(self, name: str) -> Model | None:
        """Return the model that *name* means, whether or not callers may use it; None: there is none."""
        if (model := self._catalog.find(name)) is not None:
            return model
        folded = fold_name(name)
        if (model := self._catalog.find(folded)) is not None:
            return model
        target = self._folded.get(folded) or OLLAMA_LIBRARY.get(folded)
        return None if target is None else self._catalog.find(target)

    def other_names(self, model: Model) -> list[str]:
        """Return the aliases of *model*, and its names in Ollama's library, without those that mean something else."""
        wanted = model.name.lower()
        names = [name for name, target in [*self._aliases.items(), *OLLAMA_LIBRARY.items()] if target.lower() == wanted]
        return [name for name in dict.fromkeys(names) if (found := self.find(name)) and found.name == model.name]

    def _closest(self, name: str) -> list[str]:
        names = []
        for model in self._embedder().models:
            others = self.other_names(model)
            names += [model.name, *(other for other in others if other in self._aliases or other in SUGGESTED_NAMES)]
        return closest_names(fold_name(name), {known.lower(): known for known in names})
