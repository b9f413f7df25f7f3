"""The form of a key, and what is kept of it."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access import api_key

BASE_62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM = st.text(BASE_62, min_size=37, max_size=37)


def test_a_new_key_has_the_form_and_is_like_no_other() -> None:
    made = {api_key.make() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert re.fullmatch(r"va_[0-9A-Za-z]{43}", key)
        assert api_key.is_well_formed(key)


def test_the_checksum_is_a_crc_32_in_base_62() -> None:
    # zlib.crc32(b"123456789") is 0xCBF43926, by the definition of the CRC; 3421780262 in base 62.
    digits, rest = "", 0xCBF43926
    while rest:
        rest, digit = divmod(rest, 62)
        digits = BASE_62[digit] + digits
    assert api_key.of("123456789") == f"va_123456789{digits.rjust(6, '0')}"


@given(RANDOM)
def test_every_key_is_well_formed_and_of_one_length(random: str) -> None:
    key = api_key.of(random)
    assert api_key.is_well_formed(key)
    assert len(key) == 46


@given(RANDOM, st.integers(0, 45), st.sampled_from(BASE_62 + "-_ \n\0é"))
def test_a_key_with_another_character_is_none(random: str, place: int, character: str) -> None:
    key = api_key.of(random)
    changed = key[:place] + character + key[place + 1 :]
    assert api_key.is_well_formed(changed) == (changed == key)


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert not api_key.is_well_formed(text) or text.startswith("va_")


@pytest.mark.parametrize("near", ["", "va_", "VA_", " {}", "{}\n", "{} ", "va_{}", "{}0"])
def test_what_is_near_a_key_is_none(near: str) -> None:
    assert not api_key.is_well_formed(near.format(api_key.make()))


@given(RANDOM, st.binary(min_size=16), st.binary(min_size=16))
def test_a_hash_is_known_only_with_the_secret(random: str, secret: bytes, other: bytes) -> None:
    key = api_key.of(random)
    assert api_key.hashed(key, secret) == api_key.hashed(key, secret)
    # HMAC pads short secrets with zeros.
    if secret.rstrip(b"\0") != other.rstrip(b"\0"):
        assert api_key.hashed(key, secret) != api_key.hashed(key, other)
    assert random not in api_key.hashed(key, secret)


def test_a_hint_tells_a_seventh_of_the_secret() -> None:
    key = api_key.make()
    assert api_key.hint(key) == key[:9]
