"""What an API key looks like, and what is kept of it.

``va_<37 random characters><6 characters of checksum>``, all base 62: the form of GitHub's and Polar's tokens. By the
prefix, scanners of public code find one that leaked; by the checksum (CRC-32 of the random part) they and the gate tell
a key from other words without a look at the database. It protects nothing: anybody can compute it. The random part has
220 bits.
"""

import hmac
import re
import secrets
import string
import zlib

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "va_"
_RANDOM = 37
#: As many digits as a CRC-32 takes.
_CHECKSUM = 6
#: Longer than what is made today, so that a key of a later version is not taken for none.
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM},80}})([0-9A-Za-z]{{{_CHECKSUM}}})", re.ASCII)
#: Characters that a list may show: the prefix and 36 bits.
_SHOWN = len(PREFIX) + 6


def make() -> str:
    """A new key."""
    return of("".join(secrets.choice(_DIGITS) for _ in range(_RANDOM)))


def of(random: str) -> str:
    """The key with this random part."""
    return f"{PREFIX}{random}{_checksum(random)}"


def is_well_formed(text: str) -> bool:
    """Whether ``text`` could be a key, by its looks and its checksum."""
    found = _FORM.fullmatch(text)
    return found is not None and found[2] == _checksum(found[1])


def hint(key: str) -> str:
    """How it begins, to recognise it by."""
    return key[:_SHOWN]


def hashed(key: str, secret: bytes) -> str:
    """What is stored of it: without ``secret``, nobody can tell whether a guess is a key."""
    return hmac.digest(secret, key.encode(), "sha256").hex()


def _checksum(random: str) -> str:
    rest, digits = zlib.crc32(random.encode()), ""
    for _ in range(_CHECKSUM):
        rest, digit = divmod(rest, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
