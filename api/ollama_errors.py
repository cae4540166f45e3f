"""Ollama's errors: messages, statuses, names of fields, and the type that describes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from web.dialects import Dialect, not_found_for_unknown_model, unknown_model_advice
from web.problems import Problem

TOO_LONG = "the input length exceeds the context length"
"""Ollama's words, which some clients look for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaProblem(Problem):
    """A problem document without `status`, with the member that Ollama's clients show."""

    status: int | None = None  # type: ignore[assignment]  # for OpenAPI: it is left out
    error: str


def _members(document: Mapping[str, object]) -> Mapping[str, object]:
    detail = str(document["detail"])
    if (advice := unknown_model_advice(document, "GET /api/tags")) is not None:
        return {"error": f"model '{document['model']}' not found. {advice}"}
    if {"limit", "index"} <= document.keys():  # about one text, whose length is the only limit
        return {"error": f"{TOO_LONG}: {detail[:1].lower()}{detail[1:]}"}
    if re.match(r"input(\[\d+\])?: Expected", detail):
        return {"error": f"invalid input type: {detail}"}
    return {"error": detail}


OLLAMA: Final = Dialect(
    name="ollama",
    members=_members,
    status=not_found_for_unknown_model,
    fields={"texts": "input", "model_name": "model"},
    prefixes=("/api/",),
    omits=frozenset({"status"}),  # the client for Go has a text of this name, and shows the whole body instead
    takes_forms=True,
)
