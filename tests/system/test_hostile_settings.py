"""Settings made to break the start: each value gives settings that work, or one line that says what is wrong."""

import asyncio
import os
import string
from unittest.mock import patch

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import Settings, SettingsError, load_settings

repeatable = settings(derandomize=True, deadline=None, max_examples=60)
in_environment = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
"""What an environment variable can hold."""
numbers = (st.integers(-(10**40), 10**40) | st.floats()).map(str)
digits = st.text(string.digits + "eE+-._x ٣", max_size=12)
lists = st.lists(st.text(in_environment, max_size=8) | numbers, max_size=4).map(
    lambda names: orjson.dumps(names).decode()
)
sizes = st.tuples(numbers | digits, st.sampled_from(["B", "KB", "MiB", "GB", "YB", "parsec", "é"])).map("".join)
values = st.text(in_environment, max_size=40) | numbers | digits | lists | sizes
NAMES = sorted(Settings.model_fields)


def read(**variables: str) -> Settings | None:
    """The settings from these variables alone; None: they are refused, in one line that names one of them."""
    bare = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    with patch.dict(os.environ, {**bare, **variables}, clear=True):
        try:
            return load_settings(_env_file=None)
        except SettingsError as refusal:
            told = str(refusal)
            assert len(told.splitlines()) == 1
            assert any(name in told for name in variables)
            return None


@pytest.mark.parametrize("name", NAMES)
@given(value=values)
@example(value="1" + "0" * 5000)
@example(value="1e308")
@example(value="nan")
@example(value="-0")
@example(value="[" * 100_000)
@example(value="x" * 100_000)
@example(value="\n\r\u2028\x1b[31m")
@example(value="../" * 100)
@repeatable
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    if (taken := read(**{name.upper(): value})) is None:
        return
    got = getattr(taken, name)
    if isinstance(got, int | float):
        orjson.dumps(got)  # /health tells some of them


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(("_timeout", "_interval", "_ttl", "_pause", "_seconds"))]
)
async def test_longest_time_that_is_taken_can_be_waited_for(name: str) -> None:
    taken = read(**{name.upper(): "1000000000"})
    assert taken is not None
    async with asyncio.timeout(getattr(taken, name)):
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(getattr(taken, name), print).cancel()
