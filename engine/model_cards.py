"""How to use a model's vectors, as its model card says: prompts, Matryoshka dimensions, vector length."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.manifest import Manifest, Pooling, Prompts

InputType = Literal["query", "document"]

NO_PROMPTS = Prompts()


@dataclass(frozen=True, slots=True)
class Matryoshka:
    """The shorter dimensions that a model was trained for (Matryoshka representation learning).

    Attributes:
        sizes: the dimensions that the card lists.
        any_from: every dimension from this one up is allowed, too; None: only *sizes*.
        layer_norm: before a vector is shortened, it is brought to mean 0 and variance 1.
    """

    sizes: tuple[int, ...]
    any_from: int | None = None
    layer_norm: bool = False

    def allows(self, dimensions: int) -> bool:
        """Whether the model was trained for vectors of *dimensions* numbers."""
        return dimensions in self.sizes or (self.any_from is not None and dimensions >= self.any_from)

    def __str__(self) -> str:
        return f"any size from {self.any_from}" if self.any_from is not None else ", ".join(map(str, self.sizes))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How to use one model.

    Attributes:
        prompts: prefixes for queries and documents.
        needs_prompt: without the prefixes (or tasks) its vectors are worse than they could be.
        uses_tasks: it distinguishes queries from documents by a task id, which FastEmbed's own methods set.
        matryoshka: None: it was not trained for shorter vectors.
        normalized: whether FastEmbed returns its vectors at length 1; None: known once it is loaded.
        revision: the only commit of the hub's repository that is downloaded and loaded; empty: the newest, or the one
            in the cache. State one only after comparing its files with those that the card's other facts come from.
        pooling: how the vectors of tokens become one; ``none``: the graph does it in a way of its own.
    """

    prompts: Prompts = NO_PROMPTS
    needs_prompt: bool = False
    uses_tasks: bool = False
    matryoshka: Matryoshka | None = None
    normalized: bool | None = None
    revision: str = ""
    pooling: Pooling = "none"

    def prompt_for(self, input_type: InputType | None) -> str:
        """Return the prefix for a text of this type; empty without a type."""
        return "" if input_type is None else getattr(self.prompts, input_type)


EMPTY_CARD = ModelCard()


def card_of(name: str, kind: str) -> ModelCard:
    """Return the card of a model in FastEmbed's registry.

    Args:
        name: of the model.
        kind: name of the FastEmbed class that runs it.
    """
    card = CARDS.get(name, EMPTY_CARD)
    return replace(card, normalized=NORMALIZED.get(kind, card.normalized), pooling=POOLINGS.get(kind, "none"))


def card_of_folder(manifest: Manifest) -> ModelCard:
    """Return the card that a folder's manifest describes."""
    needs_prompt = bool(manifest.prompts) if manifest.needs_prompt is None else manifest.needs_prompt
    return ModelCard(
        prompts=manifest.prompts,
        needs_prompt=needs_prompt,
        matryoshka=Matryoshka(tuple(sorted(manifest.matryoshka))) if manifest.matryoshka else None,
        normalized=manifest.normalized,
        pooling=manifest.pooling,
    )


POOLINGS: Mapping[str, Pooling] = {
    "OnnxTextEmbedding": "cls",
    "PooledNormalizedEmbedding": "mean",
    "PooledEmbedding": "mean",
    "JinaEmbeddingV3": "mean",
    "LastTokenNormalizedEmbedding": "last_token",
    "StaticTextEmbedding": "mean",
}
"""How a class of FastEmbed 0.9.1 makes one vector of those of the tokens; for others, the graph decides."""
NORMALIZED: Mapping[str, bool] = {
    "OnnxTextEmbedding": True,
    "CLIPOnnxEmbedding": False,
    "SiglipOnnxTextEmbedding": True,
    "PooledNormalizedEmbedding": True,
    "PooledEmbedding": False,
    "JinaEmbeddingV3": True,
    "LastTokenNormalizedEmbedding": True,
    "StaticTextEmbedding": True,
}
"""Whether a class of FastEmbed 0.9.1 brings vectors to length 1; for `BuiltinSentenceEmbedding`, the graph decides."""

_FOR_SEARCH = "Represent this sentence for searching relevant passages: "
_FOR_SEARCH_ZH = "为这个句子生成表示以用于检索相关文章："  # noqa: RUF001 - the full-width colon is its authors'
_NOMIC = Prompts(query="search_query: ", document="search_document: ")
_NOMIC_SIZES = Matryoshka((64, 128, 256, 512), any_from=64, layer_norm=True)
# The two differ by a full stop and a space: each is as in its authors' config_sentence_transformers.json.
_QWEN3 = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_STELLA = "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: "

_NEEDS_SEARCH = ModelCard(Prompts(query=_FOR_SEARCH), needs_prompt=True)
_ALLOWS_SEARCH = ModelCard(Prompts(query=_FOR_SEARCH))

CARDS: Mapping[str, ModelCard] = {
    # FlagOpen/FlagEmbedding, README of baai_general_embedding: recommended for v1; "only a slight degradation" without
    # it for v1.5; none for documents.
    "BAAI/bge-base-en": _NEEDS_SEARCH,
    "BAAI/bge-small-en": _NEEDS_SEARCH,
    "BAAI/bge-base-en-v1.5": _ALLOWS_SEARCH,
    "BAAI/bge-large-en-v1.5": _ALLOWS_SEARCH,
    "BAAI/bge-small-en-v1.5": _ALLOWS_SEARCH,
    "BAAI/bge-small-zh-v1.5": ModelCard(Prompts(query=_FOR_SEARCH_ZH)),
    # Its card: "you have to provide the prompt", and 512 as the size of its Matryoshka example; no list of sizes.
    "mixedbread-ai/mxbai-embed-large-v1": replace(_NEEDS_SEARCH, matryoshka=Matryoshka((512,))),
    # Snowflake-Labs/arctic-embed, README: for queries only; only the later v1.5 and v2.0 allow shorter vectors.
    "snowflake/snowflake-arctic-embed-xs": _NEEDS_SEARCH,
    "snowflake/snowflake-arctic-embed-s": _NEEDS_SEARCH,
    "snowflake/snowflake-arctic-embed-m": _NEEDS_SEARCH,
    "snowflake/snowflake-arctic-embed-m-long": _NEEDS_SEARCH,
    "snowflake/snowflake-arctic-embed-l": _NEEDS_SEARCH,
    # Card of stella_en_400M_v5: its s2p prompt. Its dimensions are separate heads, so a vector must not be shortened.
    "Qdrant/stella-en-400M-v5-doc-onnx": ModelCard(Prompts(query=_STELLA), needs_prompt=True),
    # Card of v1.5: a prefix is required; 64 to 768 dimensions, after layer norm. v1 was not trained for that.
    "nomic-ai/nomic-embed-text-v1.5": ModelCard(_NOMIC, needs_prompt=True, matryoshka=_NOMIC_SIZES),
    "nomic-ai/nomic-embed-text-v1.5-Q": ModelCard(_NOMIC, needs_prompt=True, matryoshka=_NOMIC_SIZES),
    "nomic-ai/nomic-embed-text-v1": ModelCard(_NOMIC, needs_prompt=True),
    # Its card: "Each input text should start with".
    "intfloat/multilingual-e5-large": ModelCard(Prompts(query="query: ", document="passage: "), needs_prompt=True),
    # Its card: a task id, which FastEmbed sets. (The authors' own code also puts a sentence before the text.
    # FastEmbed's query_embed does not, and this service returns FastEmbed's vectors.)
    "jinaai/jina-embeddings-v3": ModelCard(
        needs_prompt=True, uses_tasks=True, matryoshka=Matryoshka((32, 64, 128, 256, 512, 768))
    ),
    # Hugging Face's blog embeddinggemma.md, by its authors: prompts, dimensions; the last module normalises.
    "google/embeddinggemma-300m": ModelCard(
        Prompts(query="task: search result | query: ", document="title: none | text: "),
        needs_prompt=True,
        matryoshka=Matryoshka((128, 256, 512)),
        normalized=True,
    ),
    # FastEmbed's registry: "embeddings are not normalized".
    "ibm-granite/granite-embedding-small-english-r2": ModelCard(normalized=False),
    # QwenLM/Qwen3-Embedding: an instruction for queries only; any dimension from 32 up.
    "Qwen/Qwen3-Embedding-0.6B": ModelCard(
        Prompts(query=_QWEN3), needs_prompt=True, matryoshka=Matryoshka((), any_from=32)
    ),
    "Qwen/Qwen3-Embedding-0.6B-Q": ModelCard(
        Prompts(query=_QWEN3), needs_prompt=True, matryoshka=Matryoshka((), any_from=32)
    ),
}
"""Cards by registry name. A model without a card needs no prompt and was not trained for shorter vectors."""
