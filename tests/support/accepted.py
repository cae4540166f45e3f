"""A check for schemathesis: what is valid by the schema is refused only for what a schema cannot say."""

import json
from http import HTTPStatus
from typing import Any

import schemathesis

UNSAID = {"dimensions", "texts", "truncate"}
"""Fields that depend on the model (its sizes), on the settings (MAX_BATCH_SIZE) and on other fields (`long_text`)."""


@schemathesis.check
def accepted(_context: Any, response: Any, case: Any) -> None:
    """A 400 to a valid request names no model that exists, or a limit, or a field of *UNSAID*."""
    if response.status_code != HTTPStatus.BAD_REQUEST or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    told = json.loads(response.content)
    if told["code"] != "unknown-model" and "limit" not in told and told.get("field") not in UNSAID:
        raise AssertionError(f"A valid request was refused: {told['detail']}")
