"""API keys: their format, how they are stored and found, and how their file is re-read."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from access.api_keys import STABLE_S, KeyFormatError, KeyRing, read_entries, read_lines
from access.principals import Principal

ALICE, BOB, CAROL = "alice-0123456789", "bob-0123456789-bob", "carol-0123456789+/="
EMBED = frozenset({"embed"})


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def callers(*texts: str) -> list[Principal]:
    return [entry.principal for entry in read_entries(texts)]


def error_of(text: str) -> str:
    """Return the error for a key that cannot be used."""
    with pytest.raises(KeyFormatError) as failure:
        KeyRing(read_entries([f"first:{CAROL}", text]))
    return str(failure.value)


def test_key_without_a_name_is_named_by_its_position_and_may_embed() -> None:
    assert callers(ALICE, f"bob:{BOB}", CAROL) == [
        Principal("key", "key-1", permissions=EMBED),
        Principal("key", "bob", permissions=EMBED),
        Principal("key", "key-3", permissions=EMBED),
    ]
    assert [entry.principal.name for entry in read_lines(f"# mine\n\n{ALICE}\n")] == ["line-3"]


def test_key_has_the_permissions_that_it_states() -> None:
    [found] = callers(f"bob:{BOB}:metrics+embed")
    assert found.permissions == {"metrics", "embed"}


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        pytest.param("embed", {"embed"}, id="embed"),
        pytest.param("metrics", {"metrics"}, id="metrics"),
        pytest.param("admin", {"embed", "metrics", "admin"}, id="admin"),
    ],
)
def test_permission_allows_itself_and_admin_allows_all(permissions: str, allowed: set[str]) -> None:
    [caller] = callers(f"bob:{BOB}:{permissions}")
    assert {name for name in ("embed", "metrics", "admin") if caller.has(name)} == allowed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a" * 15, "16 to 256", id="short"),
        pytest.param("a" * 257, "16 to 256", id="long"),
        pytest.param("", "16 to 256", id="empty"),
        pytest.param("bob:", "16 to 256", id="only a name"),
        pytest.param(f"{BOB}:bob", "16 to 256", id="key and name swapped"),
        pytest.param(f"bob:{BOB}!", "other characters", id="invalid character"),
        pytest.param(f"bob: {BOB}", "other characters", id="space"),
        pytest.param(f"bob:{BOB}ü", "other characters", id="not ASCII"),
        pytest.param(f":{BOB}", "name", id="name empty"),
        pytest.param(f"bob smith:{BOB}", "name", id="name with a space"),
        pytest.param(f"{'b' * 65}:{BOB}", "name", id="name long"),
        pytest.param(f"bob:{BOB}:write", "allowed are embed, metrics, admin", id="scope unknown"),
        pytest.param(f"bob:{BOB}:embed,metrics", "allowed are embed, metrics, admin", id="comma for plus"),
        pytest.param(f"bob:{BOB}:", "allowed are embed, metrics, admin", id="scope empty"),
        pytest.param(f"bob:{BOB}:embed:x", "two colons", id="too many parts"),
        pytest.param(f"first:{BOB}", "same name as entry 1", id="name twice"),
        pytest.param(f"bob:{CAROL}", "same key as entry 1", id="key twice"),
        pytest.param(f"first:{CAROL}", "same key as entry 1", id="both twice"),
    ],
)
def test_malformed_key_is_reported_by_its_position_and_never_shown(text: str, reason: str) -> None:
    message = error_of(text)
    assert message.startswith("entry 2 ")
    assert reason in message
    assert not [part for part in text.split(":") if len(part) > 7 and part in message]


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_a_key_or_an_error(text: str) -> None:
    try:
        [entry] = read_entries([text])
    except KeyFormatError as error:
        assert len(text) < 16 or text not in str(error)  # noqa: PT017 - most texts are errors, some are keys
    else:
        assert text.split(":")[-1 if text.count(":") < 2 else 1] == entry.key


def test_key_is_found_and_others_are_not() -> None:
    ring = KeyRing(read_entries([f"alice:{ALICE}", f"bob:{BOB}"]))
    assert ring.find(ALICE.encode()) == Principal("key", "alice", permissions=EMBED)
    assert ring.find(BOB.encode()) == Principal("key", "bob", permissions=EMBED)
    for other in (b"", ALICE[:-1].encode(), ALICE.upper().encode(), b"alice", b"\xff", f"{ALICE} ".encode()):
        assert ring.find(other) is None


def test_without_keys_nothing_is_found() -> None:
    assert KeyRing().find(b"") is None
    assert KeyRing().find(ALICE.encode()) is None


def test_keys_are_kept_as_hashes_only() -> None:
    ring = KeyRing(read_entries([f"alice:{ALICE}"]))
    held: list[object] = [ring]
    reached = set()
    while held:
        thing = held.pop()
        if id(thing) in reached or isinstance(thing, type) or callable(thing):
            continue
        reached.add(id(thing))
        assert not isinstance(thing, str | bytes) or ALICE not in str(thing)
        held.extend(gc.get_referents(thing))
    assert len(reached) > 5


def test_two_rings_keep_different_hashes() -> None:
    """A hash that leaks from one process is useless for another."""
    one, other = (KeyRing(read_entries([ALICE])) for _ in range(2))
    assert set(one._principals).isdisjoint(other._principals)  # noqa: SLF001 - this is about what is stored


# --- The file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may call\n\nalice:{ALICE}\n  bob:{BOB}:metrics  \n")
    return path


@pytest.fixture
def ring(file: Path, clock: ManualClock) -> KeyRing:
    return KeyRing(read_entries([f"carol:{CAROL}"]), file=file, clock=clock)


def names(ring: KeyRing) -> set[str]:
    found = (ring.find(key.encode()) for key in (ALICE, BOB, CAROL))
    return {caller.name for caller in found if caller is not None}


def test_keys_of_the_file_are_added_to_those_of_the_settings(ring: KeyRing) -> None:
    assert names(ring) == {"alice", "bob", "carol"}
    assert len(ring) == 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"\ufeffalice:{ALICE}\r\nbob:{BOB}\r\n".encode(), id="from Windows"),
        pytest.param(f"alice:{ALICE}\nbob:{BOB}".encode(), id="no line break at the end"),
    ],
)
def test_file_format_is_accepted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert names(KeyRing(file=tmp_path / "keys")) == {"alice", "bob"}


BROKEN = [
    pytest.param(b"", "contains no key", id="empty"),
    pytest.param(b"# nobody\n", "contains no key", id="comments only"),
    pytest.param(f"alice:{ALICE}\nbob".encode(), "line 2 has a key", id="cut short"),
    pytest.param(f"alice:{ALICE}\nbob:{ALICE}".encode(), "line 2 has the same key as line 1", id="key twice"),
    pytest.param(f"x:{BOB}\nx:{ALICE}".encode(), "line 2 has the same name as line 1", id="name twice"),
    pytest.param(f"x:{CAROL}".encode(), "line 1 has the same key as API_KEYS", id="key of the settings"),
    pytest.param(f"carol:{BOB}".encode(), "line 1 has the same name as API_KEYS", id="name of the settings"),
    pytest.param(b"\xff\xfe", "UTF-8", id="not UTF-8"),
    pytest.param(b"#" * 1_000_001, "larger", id="huge"),
]


@pytest.mark.parametrize(("content", "reason"), BROKEN)
def test_broken_file_is_rejected_at_the_start(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(KeyFormatError, match=reason):
        KeyRing(read_entries([f"carol:{CAROL}"]), file=tmp_path / "keys")


def test_missing_file_is_rejected_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyRing(file=tmp_path / "none")


def test_changed_file_is_read_again_after_the_pause(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.write_text(f"bob:{BOB}\n")
    assert names(ring) == {"alice", "bob", "carol"}
    clock.now_s += 1
    with capture_logs() as events:
        assert names(ring) == {"bob", "carol"}
    assert [(event["event"], event["keys"]) for event in events] == [("api_keys_read", 2)]


def test_replaced_file_is_read_again(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    """Kubernetes replaces files by a link; here, the new file has the same size and time."""
    before = file.stat()
    other = file.with_name("other")
    other.write_text(file.read_text().replace(ALICE, ALICE[::-1]))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    clock.now_s += 1
    assert names(ring) == {"bob", "carol"}


@pytest.mark.parametrize(("content", "reason"), BROKEN)
def test_broken_file_keeps_the_last_valid_keys_and_is_logged_once(
    content: bytes, reason: str, ring: KeyRing, file: Path, clock: ManualClock
) -> None:
    file.write_bytes(content)
    with capture_logs() as events:
        for _ in range(3):
            clock.now_s += 1
            assert names(ring) == {"alice", "bob", "carol"}
    [event] = events
    assert (event["event"], event["log_level"], event["keys"]) == ("api_keys_kept", "error", 3)
    assert reason in event["reason"]
    assert str(file) not in str(event)


def test_deleted_file_keeps_the_last_valid_keys_until_it_is_back(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.unlink()
    with capture_logs() as events:
        for _ in range(3):
            clock.now_s += 1
            assert names(ring) == {"alice", "bob", "carol"}
    assert [event["event"] for event in events] == ["api_keys_kept"]
    file.write_text(f"alice:{ALICE}\n")
    clock.now_s += 1
    assert names(ring) == {"alice", "carol"}


# --- Half-written files ---

COMPLETE, HALF = f"alice:{ALICE}\n", f"alice:{ALICE}\nbob:{BOB}"
"""What an editor has written in the end, and before: BOB may be only the first part of a key."""


def test_half_written_file_is_used_once_its_last_line_ends(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.write_text(f"alice:{ALICE[::-1]}\nbob:{BOB}")
    with capture_logs() as events:
        for _ in range(3):
            clock.now_s += 1
            assert names(ring) == {"alice", "bob", "carol"}
    [event] = events
    assert (event["event"], event["log_level"]) == ("api_keys_kept", "error")
    assert event["reason"].startswith("API_KEYS_FILE: its last line does not end with a line break")
    with file.open("a") as opened:
        opened.write("\n")
    clock.now_s += 1
    assert names(ring) == {"bob", "carol"}


def test_file_that_stays_half_written_is_used_after_a_minute(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    """A writer that stops for so long has ended; otherwise, a key that its line removes would work for ever."""
    file.write_text(f"bob:{BOB}")
    clock.now_s += 1
    assert names(ring) == {"alice", "bob", "carol"}
    clock.now_s += STABLE_S - 1
    assert names(ring) == {"alice", "bob", "carol"}
    clock.now_s += 1
    assert names(ring) == {"bob", "carol"}
    assert ring.is_unterminated


def test_file_that_goes_on_changing_stays_half_written(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    for number in range(5):
        file.write_text(f"{'#' * number}\nbob:{BOB}")
        clock.now_s += STABLE_S - 1
        assert names(ring) == {"alice", "bob", "carol"}


def test_half_written_file_that_is_malformed_is_never_used(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.write_text(f"alice:{ALICE}\nbob:short")
    with capture_logs() as events:
        for _ in range(3):
            clock.now_s += STABLE_S
            assert names(ring) == {"alice", "bob", "carol"}
    assert len(events) == 1


def test_half_written_file_is_used_at_the_start_and_reported(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "keys").write_text(HALF)
    ring = KeyRing(file=tmp_path / "keys", clock=clock)
    assert names(ring) == {"alice", "bob"}
    assert ring.is_unterminated
    (tmp_path / "keys").write_text(COMPLETE)
    clock.now_s += 1
    assert names(ring) == {"alice"}
    assert not ring.is_unterminated


def test_half_written_file_is_used_when_the_operator_asks(ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.write_text(f"bob:{BOB}")
    clock.now_s += 1
    assert names(ring) == {"alice", "bob", "carol"}
    ring.reload()
    assert names(ring) == {"bob", "carol"}
    file.unlink()
    with capture_logs() as events:
        ring.reload()
    assert [event["event"] for event in events] == ["api_keys_kept"]
    assert names(ring) == {"bob", "carol"}


def test_mounted_secret_is_used_at_once_without_a_line_break(tmp_path: Path, clock: ManualClock) -> None:
    """The kubelet writes a new folder and then replaces the link `..data`; `--from-literal` adds no line break."""

    def publish(version: str, content: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(content)
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").replace(tmp_path / "..data")

    publish("..1", f"alice:{ALICE}\nbob:{BOB}")
    (tmp_path / "keys").symlink_to("..data/keys")
    ring = KeyRing(file=tmp_path / "keys", clock=clock)
    assert names(ring) == {"alice", "bob"}
    assert not ring.is_unterminated
    publish("..2", f"bob:{BOB}")
    clock.now_s += 1
    assert names(ring) == {"bob"}
    (tmp_path / "..2/keys").write_text(f"alice:{ALICE}")  # not the kubelet: the file behind the link is written
    clock.now_s += 1
    assert names(ring) == {"bob"}


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder"])
def test_what_is_no_file_leaves_the_keys_as_they_are(kind: str, ring: KeyRing, file: Path, clock: ManualClock) -> None:
    file.unlink()
    make: dict[str, Callable[[], None]] = {
        "pipe": lambda: os.mkfifo(file),
        "loop": lambda: file.symlink_to(file.name),
        "device": lambda: file.symlink_to("/dev/zero"),
        "folder": file.mkdir,
    }
    make[kind]()
    with capture_logs() as events:
        for _ in range(2):
            clock.now_s += 1
            assert names(ring) == {"alice", "bob", "carol"}
    assert [event["event"] for event in events] == ["api_keys_kept"]
    with pytest.raises((OSError, KeyFormatError)):
        KeyRing(file=file)


def test_unchanged_file_is_not_read_again(ring: KeyRing, clock: ManualClock) -> None:
    with capture_logs() as events:
        clock.now_s += 3600
        names(ring)
    assert events == []
