"""``Prefer`` as RFC 7240 writes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.prefer import MAX_WAIT_S, wait_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], 0),
        (["wait=5"], 5),
        (["Wait = 5"], 5),
        (['wait="5"'], 5),
        (["respond-async, wait=7"], 7),
        (["respond-async", "wait=7"], 7),
        (["wait=7;why=x, wait=9"], 7),
        (['handling="lenient, wait=3", wait=4'], 4),
        (['handling="a \\" wait=3", wait=4'], 4),
        (["wait=60"], 60),
        (["wait=61"], MAX_WAIT_S),
        (["wait=00030"], 30),
        ([f"wait={'9' * 10_000}"], MAX_WAIT_S),
        (["wait=0"], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait=٣"], 0),
        (["wait"], 0),
        (["await=5"], 0),
        (['"wait=5'], 0),
    ],
)
def test_the_wait_is_found(headers: list[str], seconds: int) -> None:
    assert wait_s(headers) == seconds


@given(st.lists(st.text(alphabet='wait=5,;" \\x0٣\n'), max_size=3))
def test_whatever_is_sent_is_no_error(headers: list[str]) -> None:
    assert 0 <= wait_s(headers) <= MAX_WAIT_S


@pytest.mark.parametrize("unit", ['\\"', '"', '"a', '"a\\\n', '"\\,'])
def test_a_text_without_an_end_is_read_once(unit: str) -> None:
    """Read from each of its quotes, a megabyte would take an hour; and this goes on before anybody else's request."""
    assert wait_s(["wait=5", f'x="{unit * (2**20 // len(unit))}\\']) == 5
