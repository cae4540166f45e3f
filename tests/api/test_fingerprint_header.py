"""`If-Model-Fingerprint`: a request is answered only by the model that it requires."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.fingerprint_header import FORM, expected_fingerprint
from engine.errors import InvalidInputError
from tests.support.apps import running_app
from tests.support.tiny import TinyModel

Json = dict[str, Any]
NAME = "acme/tiny"
OTHER = "0123456789abcdef"
BODIES: dict[str, Json] = {"/embed": {"text": "one"}, "/embed/batch": {"texts": ["one", "two"]}}
GUARDED: dict[str, Json] = {**BODIES, "/tokenize": {"texts": ["one"]}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    TinyModel(NAME).write(folder)
    TinyModel("acme/other", dim=5).write(folder)
    limits = {"ENABLE_RATE_LIMIT": "true", "RATE_LIMIT_REQUESTS": "10000", "RATE_LIMIT_TOKENS": "100000"}
    window = {"RATE_LIMIT_WINDOW": "86400"}  # no quota is refilled during a test
    variables = {"MODELS_DIR": str(folder), "REQUIRED_MODELS": NAME, "ENABLE_CORS": "true", **limits, **window}
    with running_app(**variables) as client:
        yield client


@pytest.fixture(scope="module")
def fingerprint(client: httpx.Client) -> str:
    return client.post("/embed", json={"text": "one"}).headers["x-model-fingerprint"]


def runs(client: httpx.Client) -> object:
    return client.get("/metrics").json()["micro_batches"]["runs"]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("form", ["{}", '"{}"', " {}\t"], ids=["plain", "quoted", "spaces"])
def test_model_with_the_required_fingerprint_answers(
    path: str, form: str, client: httpx.Client, fingerprint: str
) -> None:
    for value in (fingerprint, fingerprint.upper()):
        headers = {"If-Model-Fingerprint": form.format(value)}
        assert client.post(path, json=GUARDED[path], headers=headers).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_model_with_another_fingerprint_answers_412_with_both_and_does_no_work(
    path: str, client: httpx.Client, fingerprint: str
) -> None:
    before, left = runs(client), client.post("/tokenize", json=GUARDED["/tokenize"]).headers["ratelimit"]
    response = client.post(path, json=GUARDED[path], headers={"If-Model-Fingerprint": OTHER})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (412, "fingerprint-mismatch")
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["expected"], problem["actual"]) == (OTHER, fingerprint)
    assert OTHER in problem["detail"]
    assert fingerprint in problem["detail"]
    assert NAME in problem["detail"]
    assert runs(client) == before
    tokens = re.compile(r'"tokens";r=\d+')
    assert tokens.findall(response.headers["ratelimit"]) == tokens.findall(left) != []


def test_fingerprint_is_compared_with_that_of_the_model_of_the_request(client: httpx.Client, fingerprint: str) -> None:
    other = client.post("/embed", json={"text": "one", "model_name": "acme/other"}).headers["x-model-fingerprint"]
    headers = {"If-Model-Fingerprint": fingerprint}
    response = client.post("/embed", json={"text": "one", "model_name": "acme/other"}, headers=headers)
    assert (response.status_code, response.json()["actual"]) == (412, other)


MALFORMED = {
    "empty": "",
    "empty quotes": '""',
    "short": "0123456789abcde",
    "long": "0123456789abcdef0",
    "not hexadecimal": "0123456789abcdeg",
    "any": "*",
    "quoted any": '"*"',
    "weak": f'W/"{OTHER}"',
    "one quote": f'"{OTHER}',
    "other quotes": f"'{OTHER}'",
    "list": f"{OTHER}, {OTHER}",
    "list of quoted ones": f'"{OTHER}","fedcba9876543210"',
    "sha256": OTHER * 4,
    "other digits": "\xb2" * 16,
}


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_malformed_fingerprint_is_a_400_that_says_what_to_send(path: str, value: str, client: httpx.Client) -> None:
    headers = [(b"If-Model-Fingerprint", value.encode("latin-1")), (b"Content-Type", b"application/json")]
    response = client.post(path, json=GUARDED[path], headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, "invalid-input")
    assert problem["field"] == "If-Model-Fingerprint"
    assert "16 hexadecimal digits, as in X-Model-Fingerprint" in problem["detail"]


def test_several_headers_are_rejected_even_if_one_is_right(client: httpx.Client, fingerprint: str) -> None:
    for values in ((fingerprint, OTHER), (OTHER, fingerprint), (fingerprint, fingerprint)):
        headers = [("If-Model-Fingerprint", value) for value in values]
        response = client.post("/embed", json={"text": "one"}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (400, "invalid-input")
        assert "several values" in response.json()["detail"]


def test_pages_of_other_origins_may_send_it(client: httpx.Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "if-model-fingerprint"}
    allowed = client.options("/embed", headers={"Origin": "https://app.example", **asked})
    assert allowed.is_success
    assert "if-model-fingerprint" in allowed.headers["access-control-allow-headers"].lower()
    headers = {"Origin": "https://app.example", "If-Model-Fingerprint": OTHER}
    rejected = client.post("/embed", json={"text": "one"}, headers=headers)
    assert rejected.headers["access-control-allow-origin"] == "*"


def test_openapi_document_describes_the_header_and_the_412(client: httpx.Client) -> None:
    paths = client.get("/schema/openapi.json").json()["paths"]
    for path in GUARDED:
        operation = paths[path]["post"]
        [parameter] = [entry for entry in operation["parameters"] if entry["name"] == "If-Model-Fingerprint"]
        assert (parameter["in"], parameter["required"], parameter["schema"]["pattern"]) == ("header", False, FORM)
        examples = operation["responses"]["412"]["content"]["application/problem+json"]["examples"]
        [example] = examples.values()
        assert {"expected", "actual"} <= set(example["value"])
    for path, operations in paths.items():
        for operation in operations.values():
            is_native = set(operation["tags"]) <= {"Embedding", "Models", "Operation"}
            assert path in GUARDED or not is_native or "If-Model-Fingerprint" not in str(operation), path


def test_model_shows_its_runtime_beside_its_fingerprint(client: httpx.Client, fingerprint: str) -> None:
    model = client.get(f"/models/{NAME}").json()
    assert model["stamp"]["fingerprint"] == fingerprint
    runtime = model["runtime"]
    assert set(runtime) == {"id", "onnxruntime", "fastembed", "tokenizers", "cpu"}
    assert re.fullmatch(r"[0-9a-f]{16}", runtime["id"])
    assert all(runtime.values())
    assert client.get("/models/BAAI/bge-small-en-v1.5").json()["runtime"] is None


def test_without_the_header_any_model_answers() -> None:
    assert expected_fingerprint([]) is None


def test_value_is_not_repeated_in_the_error() -> None:
    with pytest.raises(InvalidInputError) as invalid:
        expected_fingerprint(["a secret, perhaps"])
    assert "secret" not in invalid.value.detail
