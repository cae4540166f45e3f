"""Coverage-guided fuzzing of the body decoder: `python -m tests.support.fuzz_bodies -runs=N -seed=1 [corpus]`.

Arguments are libFuzzer's. It ends with a traceback and the bytes at the first exception that is no answer to a caller.
"""

import sys

import atheris

with atheris.instrument_imports(include=["api.request_types", "web.problems", "json.decoder", "json.scanner"]):
    from tests.support.decoding import KINDS, judge

DICTIONARY = ('{"text":"', '{"texts":["', '"model_name":', '"dimensions":', "\\ud800", "\\u0000", "NaN", "[[[[", "\xff")


def test_one_input(content: bytes) -> None:
    for kind in KINDS:
        judge(content, kind)


def shaped(content: bytes, most: int, seed: int) -> bytes:
    """Puts a word that matters somewhere, or does what libFuzzer does by itself."""
    if seed % 4:
        return bytes(atheris.Mutate(content, most))
    word = DICTIONARY[seed // 4 % len(DICTIONARY)].encode("latin-1")
    place = seed // 64 % (len(content) + 1)
    return (content[:place] + word + content[place:])[:most]


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=shaped)
    atheris.Fuzz()
