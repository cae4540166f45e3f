"""Coverage-guided fuzzing of the body decoder: `python -m tests.support.fuzz_bodies -runs=N -seed=1 [CORPUS]`.

The arguments are libFuzzer's. It ends at the first exception that is not an answer to a caller, with the traceback and
the body.
"""

import sys

import atheris

with atheris.instrument_imports(
    include=[
        "api.cohere_types",
        "api.openai_requests",
        "api.tei_types",
        "api.request_types",
        "web.problems",
        "json.decoder",
        "json.scanner",
    ]
):
    from tests.support.decoding import DIALECT_TYPES, REQUEST_TYPES, check_body, check_dialect_body

DICTIONARY = (
    *('{"text":"', '{"texts":["', '"model_name":', '"dimensions":', "\\ud800", "\\u0000", "NaN", "[[[[", "\xff"),
    *('"model":', "null", '{"inputs":[{"content":[{"type":"text","text":"', '"embedding_types":["int8"]'),
    *('{"input":[[1', '{"input":[{"text":"', '{"inputs":{"source_sentence":"', '"encoding_format":"base64"'),
)


def test_one_input(content: bytes) -> None:
    for body_type in REQUEST_TYPES:
        check_body(content, body_type)
    for body_type in DIALECT_TYPES:
        check_dialect_body(content, body_type)


def mutate(content: bytes, max_bytes: int, seed: int) -> bytes:
    """Insert a word of DICTIONARY, or, in three of four cases, mutate as libFuzzer does."""
    if seed % 4:
        return bytes(atheris.Mutate(content, max_bytes))
    word = DICTIONARY[seed // 4 % len(DICTIONARY)].encode("latin-1")
    place = seed // 64 % (len(content) + 1)
    return (content[:place] + word + content[place:])[:max_bytes]


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
