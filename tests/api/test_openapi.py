"""The OpenAPI document: each operation has a group, examples that fit its schemas, and its errors in its dialect."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api import openapi, openapi_examples
from api.openapi import RETRY_HEADERS, TAGS, VECTOR_HEADERS
from main import create_app
from tests.support.apps import settings_of
from web.problems import MEDIA_TYPE
from web.rate_limits import LIMIT_HEADERS

Json = dict[str, Any]
DIALECTS = {"OpenAI": {"error"}, "Ollama": {"error"}, "Cohere": {"message", "id"}, "TEI": {"error", "error_type"}}
"""Groups of operations that speak the API of another server, each with the members of its errors."""
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}
METHODS = {"get", "put", "post", "delete", "head"}


def operations() -> Iterator[tuple[str, Json]]:
    """Yield name and description of every operation."""
    for path, methods in sorted(DOCUMENT["paths"].items()):  # Litestar keeps the paths of a handler in a set
        for method, operation in methods.items():
            if method in METHODS:
                yield f"{method} {path}", operation


DOCUMENT: Json = create_app(settings_of()).openapi_schema.to_schema()
OPERATIONS = dict(operations())
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
DIALECT_OPERATIONS = {name: op for name, op in OPERATIONS.items() if set(op["tags"]) & set(DIALECTS)}
each_dialect_operation = pytest.mark.parametrize("operation", DIALECT_OPERATIONS.values(), ids=DIALECT_OPERATIONS)


def check(content: Json) -> None:
    """Check that there are examples, and that each fits the schema."""
    validator = Draft202012Validator({**DOCUMENT, **content["schema"]})
    examples = [example["value"] for example in content["examples"].values()]
    assert examples
    for example in examples:
        validator.validate(example)


def test_groups_are_those_described() -> None:
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == {tag.name for tag in TAGS}


def test_names_of_operations_differ() -> None:
    """Programs that generate clients use them as the names of functions."""
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


@each_operation
def test_operation_has_one_group_a_summary_and_a_sentence(operation: Json) -> None:
    [_] = operation["tags"]
    assert operation["description"].replace("`", "").startswith(operation["summary"])  # not a name in the code
    assert operation["description"].rstrip().endswith(".")


@each_operation
def test_operation_has_examples_that_fit_their_schemas(operation: Json) -> None:
    if body := operation.get("requestBody"):
        [content] = body["content"].values()
        schema = content["schema"]
        validator = Draft202012Validator({**DOCUMENT, **schema})
        assert schema["examples"]
        for example in schema["examples"]:
            validator.validate(example)
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            check(content)


@each_operation
def test_parameters_of_the_path_are_described(operation: Json) -> None:
    [name] = [name for name, other in OPERATIONS.items() if other is operation]
    described = {
        parameter["name"]: parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "path"
    }
    assert all(parameter["description"] and parameter["examples"] for parameter in described.values())
    assert described.keys() == {part.strip("{}") for part in name.split("/") if part.startswith("{")}


@each_dialect_operation
def test_errors_of_a_dialect_have_the_members_of_both_worlds(operation: Json) -> None:
    [tag] = operation["tags"]
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            [(media_type, content)] = response["content"].items()
            assert media_type == "application/json"
            for example in content["examples"].values():
                omitted = {"status"} if tag == "Ollama" else set()
                assert example["value"].keys() >= PROBLEM_MEMBERS - omitted | DIALECTS[tag]
                assert not omitted & example["value"].keys()
                assert example["value"]["status_code"] == int(status)


@pytest.mark.parametrize(
    "operation", [pytest.param(op, id=name) for name, op in DIALECT_OPERATIONS.items() if "500" in op["responses"]]
)
def test_answers_with_vectors_state_their_headers(operation: Json) -> None:
    for status, response in operation["responses"].items():
        expected = {*LIMIT_HEADERS, *(VECTOR_HEADERS if status == "200" else ())}
        if status in {"429", "503"}:
            expected |= {*RETRY_HEADERS}
        assert set(response["headers"]) == expected


@pytest.mark.parametrize(
    ("path", "described"),
    [
        ("/embed", openapi_examples.EMBED),
        ("/embed/batch", openapi_examples.EMBED_BATCH),
        ("/tokenize", openapi_examples.TOKENIZE),
        ("/models", openapi_examples.MODELS),
    ],
)
def test_errors_of_the_native_api_are_problem_documents(path: str, described: openapi.Responses) -> None:
    """Where TEI's bodies are accepted as well, its errors of the same status are beside ours."""
    [operation] = DOCUMENT["paths"][path].values()
    for status in described:
        assert status == 200 or MEDIA_TYPE in operation["responses"][str(status)]["content"]


@pytest.mark.parametrize("path", ["/embed", "/tokenize"])
def test_bodies_and_errors_of_shared_routes_are_of_either_api(path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    [body] = operation["requestBody"]["content"].values()
    assert {"text", "texts", "inputs"} & {key for example in body["schema"]["examples"] for key in example} > {"inputs"}
    for status in ("422", "429"):
        content = operation["responses"][status]["content"]["application/json"]
        for example in content["examples"].values():
            assert example["value"].keys() >= PROBLEM_MEMBERS | DIALECTS["TEI"]
