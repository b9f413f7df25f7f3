"""Which bytes a header means, by RFC 9110."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.ranges import MOST, has_changed, is_known, parts

TAG = '"a-1"'
MODIFIED = datetime(2026, 11, 26, 15, 0, tzinfo=UTC)
SAME, EARLIER, LATER = (f"Thu, 26 Nov 2026 {time} GMT" for time in ("15:00:00", "14:59:59", "15:00:01"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("bytes=0-0", [(0, 0)]),
        # Safari's first question.
        ("bytes=0-1", [(0, 1)]),
        ("bytes=0-", [(0, 9)]),
        ("BYTES=2-5", [(2, 5)]),
        ("bytes=5-500", [(5, 9)]),
        ("bytes=-3", [(7, 9)]),
        ("bytes=-300", [(0, 9)]),
        ("bytes=0-1, 4-5", [(0, 1), (4, 5)]),
        ("bytes=,0-1,,", [(0, 1)]),
        # What can be given is given.
        ("bytes=0-1,20-30", [(0, 1)]),
        ("bytes=10-", []),
        ("bytes=10-20,-0", []),
        ("bytes=-0", []),
    ],
)
def test_parts_of_ten_bytes(asked: str, found: list[tuple[int, int]]) -> None:
    assert parts(asked, 10) == found


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1_0-",
        "bytes=\u0661-",
        "bytes=0-1;2-3",
        "bytes=0-1,x",
        "lines=0-1",
        f"bytes={'9' * 19}-",
        f"bytes={','.join(['0-0'] * (MOST + 1))}",
    ],
)
def test_what_is_no_range_is_ignored(asked: str) -> None:
    assert parts(asked, 10) is None


@given(asked=st.text(alphabet="bytes=0123456789-, \t", max_size=40), size=st.integers(0, 200))
def test_no_part_is_beyond_the_file(asked: str, size: int) -> None:
    for first, last in parts(asked, size) or ():
        assert 0 <= first <= last < size


def test_an_empty_file_has_no_parts() -> None:
    assert parts("bytes=0-", 0) == parts("bytes=-1", 0) == []


@pytest.mark.parametrize(
    ("if_range", "changed"),
    [
        (None, False),
        (TAG, False),
        (SAME, False),
        (f"W/{TAG}", True),
        ('"b"', True),
        (EARLIER, True),
        (LATER, True),
        ("?", True),
    ],
)
def test_a_part_is_only_of_the_file_that_the_client_has_begun(if_range: str | None, changed: bool) -> None:
    assert has_changed(TAG, MODIFIED, if_range) is changed


@pytest.mark.parametrize(
    ("none_match", "since", "known"),
    [
        (None, None, False),
        (TAG, None, True),
        (f'"b", W/{TAG}', None, True),
        ("*", None, True),
        ('"b"', None, False),
        ("", None, False),
        (None, SAME, True),
        (None, LATER, True),
        (None, EARLIER, False),
        (None, "yesterday", False),
        # A tag says more than a date.
        ('"b"', LATER, False),
    ],
)
def test_what_the_client_has_is_not_sent(none_match: str | None, since: str | None, known: bool) -> None:
    assert is_known(TAG, MODIFIED, none_match, since) is known
