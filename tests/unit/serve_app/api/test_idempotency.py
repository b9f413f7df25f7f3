"""What is an ``Idempotency-Key``, and when two requests are the same."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.idempotency import MAX_LENGTH, fingerprint, parse

VISIBLE = string.ascii_letters + string.digits + string.punctuation
values = st.text(VISIBLE + " ", min_size=1, max_size=MAX_LENGTH)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(st.text(max_size=5), json_values, max_size=3)


def quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@given(values)
def test_any_string_can_be_quoted(value: str) -> None:
    assert parse(quoted(value)) == value


@given(st.text(VISIBLE.replace('"', "").replace(",", ""), min_size=1, max_size=MAX_LENGTH))
def test_bare_and_quoted_are_the_same_key(value: str) -> None:
    assert parse(value) == parse(f" {value}\t") == parse(quoted(value))


@given(st.text())
def test_what_is_taken_is_short_and_harmless(header: str) -> None:
    try:
        value = parse(header)
    except ValueError:
        return
    assert 1 <= len(value) <= MAX_LENGTH
    assert value.isascii()
    assert value.isprintable()


@pytest.mark.parametrize(
    "header",
    [
        "",
        '""',
        "  ",
        "two words",
        "caf\xe9",
        '"caf\xe9"',
        "a\0b",
        '"a\tb"',
        '"open',
        'shut"',
        '"',
        '"a"b"',
        r'"\a"',
        '"a";v=1',
        '"a", "b"',
        "a,b",
        "a" * (MAX_LENGTH + 1),
        quoted("a" * (MAX_LENGTH + 1)),
    ],
)
def test_everything_else_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse(header)


@given(bodies)
def test_the_order_of_keys_means_nothing(asked: dict[str, object]) -> None:
    turned = dict(reversed(asked.items()))
    assert fingerprint(turned) == fingerprint(asked)


@given(bodies, bodies)
def test_what_differs_is_another_request(one: dict[str, object], other: dict[str, object]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same
    assert fingerprint({"asked": one, "more": None}) != fingerprint({"asked": one})
