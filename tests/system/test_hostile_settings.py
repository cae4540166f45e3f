"""Settings made to break the start: each value is accepted, or rejected in one line that names the setting."""

import asyncio
import string

import hypothesis
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config import Settings, SettingsError
from tests.support.apps import settings_of

repeatable = hypothesis.settings(derandomize=True, deadline=None, max_examples=60)
in_environment = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
"""The characters that an environment variable can contain."""
numbers = (st.integers(-(10**40), 10**40) | st.floats()).map(str)
digits = st.text(string.digits + "eE+-._x ٣", max_size=12)
lists = st.lists(st.text(in_environment, max_size=8) | numbers, max_size=4).map(
    lambda names: orjson.dumps(names).decode()
)
sizes = st.tuples(numbers | digits, st.sampled_from(["B", "KB", "MiB", "GB", "YB", "parsec", "é"])).map("".join)
values = st.text(in_environment, max_size=40) | numbers | digits | lists | sizes
NAMES = sorted(Settings.model_fields)
BY_TYPE = {
    f"{field.annotation} {[getattr(item, 'func', type(item)) for item in field.metadata]}": name
    for name, field in Settings.model_fields.items()
}
"""One setting of each type, whatever its bounds: the same code parses and checks all of them."""


def accepted(**variables: str) -> Settings | None:
    """Return the settings of these variables; None: they are rejected, in one line that names one of them."""
    try:
        return settings_of(**variables)
    except SettingsError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert any(name in message for name in variables)
        return None


@pytest.mark.parametrize("name", BY_TYPE.values())
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
def test_any_value_is_accepted_or_rejected_in_one_line(name: str, value: str) -> None:
    if (settings := accepted(**{name.upper(): value})) is None:
        return
    parsed = getattr(settings, name)
    if isinstance(parsed, int | float):
        orjson.dumps(parsed)  # /health reports some of them


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(("_timeout", "_interval", "_ttl", "_pause", "_seconds"))]
)
async def test_longest_time_that_is_accepted_can_be_waited_for(name: str) -> None:
    settings = accepted(**{name.upper(): "1000000000"})
    assert settings is not None
    async with asyncio.timeout(getattr(settings, name)):
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(getattr(settings, name), print).cancel()
