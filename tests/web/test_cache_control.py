"""`Cache-Control` of requests: what counts, however it is written, and what is ignored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.result_store import CacheUse
from web.cache_control import cache_use

ANYTHING = CacheUse()
ANEW = CacheUse(may_read=False)
UNKEPT = CacheUse(may_keep=False)
NEITHER = CacheUse(may_read=False, may_keep=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], ANYTHING, id="no header"),
        pytest.param([""], ANYTHING, id="empty"),
        pytest.param(["no-cache"], ANEW, id="no-cache"),
        pytest.param(["no-store"], UNKEPT, id="no-store"),
        pytest.param(["no-cache, no-store"], NEITHER, id="list"),
        pytest.param(["no-store,no-cache"], NEITHER, id="list without blanks"),
        pytest.param(["no-store", "no-cache"], NEITHER, id="two headers"),
        pytest.param([" ,, \tNo-Store\t,"], UNKEPT, id="case, blanks and empty elements"),
        pytest.param(["max-age=0"], ANEW, id="max-age of zero, as browsers send it"),
        pytest.param(['MAX-AGE="00"'], ANEW, id="quoted zero"),
        pytest.param(["max-age=60"], ANYTHING, id="another age"),
        pytest.param(["max-age", "max-age=", "max-age=x", "max-age=-0", "max-age=0x0"], ANYTHING, id="no age"),
        pytest.param(["max-age=60, max-age=0"], ANEW, id="two ages"),
        pytest.param(["no-store=1"], UNKEPT, id="argument that does not belong there"),
        pytest.param(['no-cache="Set-Cookie"'], ANEW, id="argument of answers"),
        pytest.param(["no-storeage, xno-cache, no-cache-at-all, no cache"], ANYTHING, id="other names"),
        pytest.param(["only-if-cached, max-stale=5, min-fresh=5, no-transform, s-maxage=0"], ANYTHING, id="not used"),
        pytest.param(['community="UCI, no-store", no-cache'], ANEW, id="comma in quotes"),
        pytest.param([r'a="\", no-store, ", no-cache'], ANEW, id="escaped quote"),
        pytest.param(['a="b, no-store'], ANYTHING, id="quote that is never closed"),
        pytest.param(['a="b', "no-store"], UNKEPT, id="quote that ends with its header"),
        pytest.param(['a="\\', "no-store"], UNKEPT, id="backslash at the end"),
    ],
)
def test_directives_count_as_rfc_9111_says(values: list[str], expected: CacheUse) -> None:
    assert cache_use(values) == expected


@given(st.lists(st.text(st.characters(max_codepoint=255))))
def test_any_value_is_accepted(values: list[str]) -> None:
    assert cache_use([*values, "no-store"]).may_keep is False
