"""A check for schemathesis: a request that fits the schema is rejected only for what a schema cannot express."""

import json
from http import HTTPStatus
from typing import Any

import schemathesis

NOT_IN_SCHEMA = {
    *("dimensions", "output_dimension", "input", "inputs", "late_chunking", "normalize", "normalized", "texts"),
    *("truncate", "truncate_prompt_tokens"),
}
"""Fields whose limits depend on the model (dimensions), the settings (MAX_BATCH_SIZE) or other fields (`long_text` and
`dtype`; Cohere's `inputs` exclude `texts`), or whose values are understood and not supported (`late_chunking`)."""


@schemathesis.check
def accepted(_context: Any, response: Any, case: Any) -> None:
    """Accept a 400 for a valid request only if it is about an unknown model, a limit or a field of NOT_IN_SCHEMA.

    Or if the model sees nothing of a text, which its tokenizer decides.
    """
    if response.status_code != HTTPStatus.BAD_REQUEST or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    problem = json.loads(response.content)
    if "is blank for this model" in problem["detail"]:
        return
    if problem["code"] != "unknown-model" and "limit" not in problem and problem.get("field") not in NOT_IN_SCHEMA:
        raise AssertionError(f"A valid request was rejected: {problem['detail']}")
