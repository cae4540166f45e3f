"""What models' cards say on how to use their vectors: prompts, Matryoshka sizes, lengths."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.manifest import Manifest, Prompts

InputType = Literal["query", "document"]

NO_PROMPTS = Prompts()


@dataclass(frozen=True, slots=True)
class Matryoshka:
    """The sizes to which a model was trained to have its vectors cut.

    Attributes:
        sizes: those that the card names.
        any_from: each size from this one up to the whole vector is meant, too; None: only *sizes*.
        layer_norm: the card brings a vector to mean 0 and variance 1 before it is cut.
    """

    sizes: tuple[int, ...]
    any_from: int | None = None
    layer_norm: bool = False

    def allows(self, dimensions: int) -> bool:
        """Whether the card stands for vectors of so many numbers (at most those of a whole one)."""
        return dimensions in self.sizes or (self.any_from is not None and dimensions >= self.any_from)

    def __str__(self) -> str:
        return f"any size from {self.any_from}" if self.any_from is not None else ", ".join(map(str, self.sizes))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """How a model wants to be used.

    Attributes:
        prompts: what stands before a query and before a document.
        needs_prompt: without them (or its tasks) the vectors are worse than the model can do.
        uses_tasks: it tells queries from documents by a task id instead, which FastEmbed's own methods set.
        matryoshka: None: it was not trained to have its vectors cut.
        normalized: whether FastEmbed gives its vectors at length 1; None: not known before it is loaded.
    """

    prompts: Prompts = NO_PROMPTS
    needs_prompt: bool = False
    uses_tasks: bool = False
    matryoshka: Matryoshka | None = None
    normalized: bool | None = None

    def prompt_for(self, input_type: InputType | None) -> str:
        """What stands before a text of this type; without a type nothing does."""
        return "" if input_type is None else getattr(self.prompts, input_type)


BLANK = ModelCard()


def card_of(name: str, kind: str) -> ModelCard:
    """The card of a model of FastEmbed's registry, which knows it as one of *kind*, a class of its own."""
    card = CARDS.get(name, BLANK)
    return replace(card, normalized=NORMALIZED.get(kind, card.normalized))


def card_of_folder(manifest: Manifest) -> ModelCard:
    """The card that a folder's manifest states."""
    needs_prompt = bool(manifest.prompts) if manifest.needs_prompt is None else manifest.needs_prompt
    return ModelCard(
        prompts=manifest.prompts,
        needs_prompt=needs_prompt,
        matryoshka=Matryoshka(tuple(sorted(manifest.matryoshka))) if manifest.matryoshka else None,
        normalized=manifest.normalized,
    )


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
"""Whether FastEmbed 0.9.1's classes bring vectors to length 1; `BuiltinSentenceEmbedding` leaves it to the graph."""

_FOR_SEARCH = "Represent this sentence for searching relevant passages: "
_FOR_SEARCH_ZH = "为这个句子生成表示以用于检索相关文章："  # noqa: RUF001 - the full-width colon is its authors'
_NOMIC = Prompts(query="search_query: ", document="search_document: ")
_NOMIC_SIZES = Matryoshka((64, 128, 256, 512), any_from=64, layer_norm=True)
# The two tasks differ by a full stop and a space: each is what its authors' config_sentence_transformers.json says.
_QWEN3 = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_STELLA = "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: "

_WANTS_SEARCH = ModelCard(Prompts(query=_FOR_SEARCH), needs_prompt=True)
_TAKES_SEARCH = ModelCard(Prompts(query=_FOR_SEARCH))

CARDS: Mapping[str, ModelCard] = {
    # FlagOpen/FlagEmbedding, README of baai_general_embedding: recommended for v1, "only a slight degradation" without
    # it for v1.5; documents never have one.
    "BAAI/bge-base-en": _WANTS_SEARCH,
    "BAAI/bge-small-en": _WANTS_SEARCH,
    "BAAI/bge-base-en-v1.5": _TAKES_SEARCH,
    "BAAI/bge-large-en-v1.5": _TAKES_SEARCH,
    "BAAI/bge-small-en-v1.5": _TAKES_SEARCH,
    "BAAI/bge-small-zh-v1.5": ModelCard(Prompts(query=_FOR_SEARCH_ZH)),
    # Its card: "you have to provide the prompt", and 512 as the size of its Matryoshka example; no list of sizes.
    "mixedbread-ai/mxbai-embed-large-v1": replace(_WANTS_SEARCH, matryoshka=Matryoshka((512,))),
    # Snowflake-Labs/arctic-embed, README: on the query only; only the later v1.5 and v2.0 may be cut.
    "snowflake/snowflake-arctic-embed-xs": _WANTS_SEARCH,
    "snowflake/snowflake-arctic-embed-s": _WANTS_SEARCH,
    "snowflake/snowflake-arctic-embed-m": _WANTS_SEARCH,
    "snowflake/snowflake-arctic-embed-m-long": _WANTS_SEARCH,
    "snowflake/snowflake-arctic-embed-l": _WANTS_SEARCH,
    # Card of stella_en_400M_v5: its s2p prompt. Its sizes are heads of their own, so a vector must not be cut.
    "Qdrant/stella-en-400M-v5-doc-onnx": ModelCard(Prompts(query=_STELLA), needs_prompt=True),
    # Card of v1.5: a prefix is a must; sizes from 768 to 64, layer norm before the cut. v1 was not trained for it.
    "nomic-ai/nomic-embed-text-v1.5": ModelCard(_NOMIC, needs_prompt=True, matryoshka=_NOMIC_SIZES),
    "nomic-ai/nomic-embed-text-v1.5-Q": ModelCard(_NOMIC, needs_prompt=True, matryoshka=_NOMIC_SIZES),
    "nomic-ai/nomic-embed-text-v1": ModelCard(_NOMIC, needs_prompt=True),
    # Its card: "Each input text should start with".
    "intfloat/multilingual-e5-large": ModelCard(Prompts(query="query: ", document="passage: "), needs_prompt=True),
    # Its card: a task id, which FastEmbed sets. (The authors' own code puts a sentence before the text, too, which
    # FastEmbed's query_embed does not: these vectors are FastEmbed's.)
    "jinaai/jina-embeddings-v3": ModelCard(
        needs_prompt=True, uses_tasks=True, matryoshka=Matryoshka((32, 64, 128, 256, 512, 768))
    ),
    # Hugging Face's blog embeddinggemma.md, by its authors: prompts, sizes, length 1 by the model's last module.
    "google/embeddinggemma-300m": ModelCard(
        Prompts(query="task: search result | query: ", document="title: none | text: "),
        needs_prompt=True,
        matryoshka=Matryoshka((128, 256, 512)),
        normalized=True,
    ),
    # FastEmbed's registry: "embeddings are not normalized".
    "ibm-granite/granite-embedding-small-english-r2": ModelCard(normalized=False),
    # QwenLM/Qwen3-Embedding: an instruction on queries only; sizes from 32 up are the caller's choice.
    "Qwen/Qwen3-Embedding-0.6B": ModelCard(
        Prompts(query=_QWEN3), needs_prompt=True, matryoshka=Matryoshka((), any_from=32)
    ),
    "Qwen/Qwen3-Embedding-0.6B-Q": ModelCard(
        Prompts(query=_QWEN3), needs_prompt=True, matryoshka=Matryoshka((), any_from=32)
    ),
}
"""By the registry's name. Models that are not here want no prompt and were not trained to have their vectors cut."""
