"""OpenAPI descriptions of the TEI routes: bodies and answers, each with a valid example."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Union, cast, get_args

from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIResponse, Operation, Reference
from litestar.params import BodyKwarg

from api.openapi import ModelOperation, Responses, VectorsOperation, answer, body, dialect_problems, problem
from api.problem_examples import MODEL_NAME, NOT_AUTHENTICATED, RUN, WORK
from api.tei_errors import TEI, EmptyInputError, TeiProblem
from api.tei_types import (
    SEND_TEXT,
    TeiEmbedRequest,
    TeiInfo,
    TeiModelType,
    TeiPooling,
    TeiRequest,
    TeiSimilarityRequest,
    TeiToken,
    TeiTokenizeRequest,
)
from engine import errors
from web.responses import JSON

TEXT, OTHER_TEXT = "How do I reset my password?", "I forgot my login."
_Examples = tuple[tuple[str, dict[str, object]], ...]
_TEXTS: _Examples = (
    ("One text", {"inputs": TEXT}),
    ("Texts; one that is too long is rejected", {"inputs": [TEXT, OTHER_TEXT], "truncate": False}),
    ("A query; the model's prompt for queries is added", {"inputs": [TEXT], "prompt_name": "query"}),
)
_SENTENCES: _Examples = (
    ("Sentences to compare", {"inputs": {"source_sentence": TEXT, "sentences": [OTHER_TEXT, "It rains."]}}),
)
EmbedBody = body(TeiEmbedRequest, *_TEXTS)
SimilarityBody = body(TeiSimilarityRequest, *_SENTENCES)
EmbedOrCompareBody = body(TeiRequest, *_TEXTS, *_SENTENCES)
TokenizeBody = body(TeiTokenizeRequest, ("Tokens", {"inputs": "Hello", "add_special_tokens": True}))

_VECTORS = [[0.00687232, -0.06304797, -0.07204665, -0.03246166]]
_SCORES = [0.61843306, 0.08254912]
_PROBLEMS = (
    problem(EmptyInputError, "`inputs` cannot be empty.", field="inputs", limit=1),
    problem(
        errors.InvalidInputError,
        "batch size 2049 > maximum allowed batch size 2048",
        field="inputs",
        limit=2048,
    ),
    problem(
        errors.InvalidInputError,
        f"inputs[0]: Expected a string, got 'int'. {SEND_TEXT}",
        field="inputs",
        index=0,
    ),
    problem(
        errors.UnknownModelError,
        "No model named 'bge-small' is offered. Did you mean 'BAAI/bge-small-en'?",
        closest=["BAAI/bge-small-en"],
    ),
    *WORK,
)
_RUN_PROBLEMS = dialect_problems(TEI, TeiProblem, *_PROBLEMS, *RUN)
_SHORTENED = "The vectors are shortened to 4 of their 384 numbers"
_LIST = "A list of vectors, also for one text"
EMBED: Responses = {
    200: answer(list[list[float]], _VECTORS, description=_LIST, summary=_SHORTENED),
    **_RUN_PROBLEMS,
}
SIMILARITY: Responses = {
    200: answer(list[float], _SCORES, description="The cosine similarities, in the order of the sentences"),
    **_RUN_PROBLEMS,
}
EMBED_OR_COMPARE: Responses = {
    200: answer(
        list[list[float]] | list[float],
        _VECTORS,
        description=f"{_LIST}; or similarities",
        summary=_SHORTENED,
        further=[("Similarities", _SCORES)],
    ),
    **_RUN_PROBLEMS,
}
TOKENIZE: Responses = {
    200: answer(
        list[list[TeiToken]],
        [
            [
                asdict(TeiToken(id=101, text="[CLS]", special=True, start=None, stop=None)),
                asdict(TeiToken(id=7592, text="Hello", special=False, start=0, stop=5)),
            ]
        ],
        description="The tokens of each text",
        summary="The last special token is left out",
    ),
    **dialect_problems(TEI, TeiProblem, *_PROBLEMS),
}
INFO: Responses = {
    200: answer(
        TeiInfo,
        TeiInfo(
            model_id=MODEL_NAME,
            model_sha=None,
            model_type=TeiModelType(TeiPooling("mean")),
            max_input_length=256,
            version="2.0.0",
        ),
        description="The model and the service",
    ),
    **dialect_problems(TEI, TeiProblem, *NOT_AUTHENTICATED),
}


def either_body(native_body: Any, tei_body: Any) -> BodyKwarg:
    """Return the examples of a body that is native or TEI's; `web.json_bodies` decides by its keys."""
    kwargs: list[BodyKwarg] = [get_args(annotated)[1] for annotated in (native_body, tei_body)]
    return replace(kwargs[0], examples=[example for kwarg in kwargs for example in kwarg.examples or []])


def either_responses(native: Responses, tei: Responses) -> Responses:
    """Return the answers of a route that is native or TEI's. `add_tei_errors` adds TEI's of the same status."""
    ours, theirs = native[200], tei[200]
    either: Any = Union[ours.data_container, theirs.data_container]  # noqa: UP007 - both are values here
    success = replace(
        ours,
        data_container=either,
        description=f"{ours.description}. With `inputs`: {theirs.description}",
        examples=[*(ours.examples or []), *(theirs.examples or [])],
    )
    return {**tei, **native, 200: success}


def add_tei_errors(operation: Operation, tei: Responses) -> None:
    """Add TEI's errors to those of an *operation* that have the same status and another media type."""
    schema = Reference(ref=f"#/components/schemas/{TeiProblem.__name__}")
    for status, spec in tei.items():
        response = cast("OpenAPIResponse", (operation.responses or {})[str(status)])
        if JSON not in (response.content or {}):
            examples: dict[str, Example | Reference] = {
                f"tei{number}": example for number, example in enumerate(spec.examples or [])
            }
            response.content = {**(response.content or {}), JSON: OpenAPIMediaType(schema=schema, examples=examples)}
            response.description += f"; with `inputs`: {spec.description}"


@dataclass
class EmbedOperation(VectorsOperation):
    """`/embed`: native or TEI's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        add_tei_errors(self, EMBED)


@dataclass
class TokenizeOperation(ModelOperation):
    """`/tokenize`: native or TEI's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        add_tei_errors(self, TOKENIZE)
