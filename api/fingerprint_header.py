"""The request header `If-Model-Fingerprint`: an index accepts only vectors of the model that it was built with."""

import re
from collections.abc import Sequence
from typing import Any

from litestar import Request
from litestar.openapi.spec import OpenAPIType, Parameter, Schema

from engine.errors import InvalidInputError
from web.request_context import header_values

IF_FINGERPRINT_HEADER = "If-Model-Fingerprint"
FORM = r'^("?)[0-9A-Fa-f]{16}\1$'
"""A fingerprint, with or without the quotes of an entity tag. A pattern that JSON Schema understands as well."""
HINT = "Send one fingerprint of 16 hexadecimal digits, as in X-Model-Fingerprint"

PARAMETER = Parameter(
    name=IF_FINGERPRINT_HEADER,
    param_in="header",
    required=False,
    description="Answer only if the model has this fingerprint, else 412. Send what an earlier answer had in "
    "X-Model-Fingerprint, with or without quotes.",
    schema=Schema(type=OpenAPIType.STRING, pattern=FORM),
)


def fingerprint_required_by(request: Request[Any, Any, Any]) -> str | None:
    """Return the fingerprint that the header of *request* states; see `expected_fingerprint`."""
    return expected_fingerprint(header_values(request.scope, b"if-model-fingerprint"))


def expected_fingerprint(values: Sequence[str]) -> str | None:
    """Return the fingerprint that a request requires, in small letters; None: any.

    Args:
        values: the values of all headers of this name.

    Raises:
        InvalidInputError: there are several, or it is not a fingerprint.
    """
    if not values:
        return None
    if len(values) == 1 and re.fullmatch(FORM, found := values[0].strip(" \t")):
        return found.strip('"').lower()
    if len(values) > 1 or "," in values[0]:
        problem = "There are several values"
    elif values[0].strip(' \t"') == "*":
        problem = "* is not a fingerprint; without this header any model answers"
    else:
        problem = "The value is not a fingerprint"
    message = f"{IF_FINGERPRINT_HEADER}: {problem}. {HINT}."
    raise InvalidInputError(message, extensions={"field": IF_FINGERPRINT_HEADER})
