"""A check for schemathesis: a request that fits the schema is rejected only for what a schema cannot express."""

import json
from http import HTTPStatus
from typing import Any

import schemathesis

NOT_IN_SCHEMA = {
    "Embedding": {"dimensions", "inputs", "normalize", "prompt_name", "texts", "truncate"},  # with TEI's shared paths
    "OpenAI": {
        *("dimensions", "input", "late_chunking", "normalized", "output_dimension"),
        *("truncate", "truncate_prompt_tokens"),
    },
    "Ollama": {"input"},
    "Cohere": {"inputs", "max_tokens", "output_dimension", "texts", "truncate"},
    "TEI": {"dimensions", "inputs", "prompt_name", "truncate"},
}
"""Per group of operations, fields whose limits depend on the model (dimensions), the settings (MAX_BATCH_SIZE) or other
fields (`long_text` and `dtype`; Cohere's `inputs` exclude `texts`), or whose values may be right but not supported.
Bodies are decoded strictly, so 5.0 is no whole number, as it is by JSON Schema (`max_tokens`)."""
REJECTED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
"""Statuses of invalid requests; TEI has 422."""


@schemathesis.check
def accepted(_context: Any, response: Any, case: Any) -> None:
    """Accept a rejection of a valid request only if it is about an unknown model, a limit or a field of NOT_IN_SCHEMA.

    Or if the model sees nothing of a text, which its tokenizer decides.
    """
    if response.status_code not in REJECTED or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    problem = json.loads(response.content)
    if "is blank for this model" in problem["detail"]:
        return
    [tag] = case.operation.definition.raw["tags"]
    allowed = NOT_IN_SCHEMA.get(tag, set())
    field = problem.get("field") or problem["detail"].partition(":")[0].removeprefix("parameters.")
    if problem["code"] != "unknown-model" and "limit" not in problem and field not in allowed:
        raise AssertionError(f"A valid request was rejected: {problem['detail']}")
