"""Parts of a file that a request asks for, and whether the client has it already: RFC 9110, sections 13 and 14."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Parts in one request. Players ask for one; more than these are nobody's but an attacker's.
MOST = 8

_SET = re.compile(r"bytes=(.*)", re.IGNORECASE | re.DOTALL)
#: ``first-last``, ``first-`` or ``-length``.
_SPEC = re.compile(r"([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18})")
_TAG = re.compile(r'(?:W/)?("[^"]*")')


def parts(asked: str, size: int) -> Sequence[tuple[int, int]] | None:
    """First and last byte of each part that a file of ``size`` bytes has; none where it has none of them.

    None for what is no range of bytes: such a header is to be ignored.
    """
    given = _SET.fullmatch(asked.strip())
    specs = [spec.strip(" \t") for spec in given[1].split(",")] if given else []
    # A list may have empty members.
    found = [_SPEC.fullmatch(spec) for spec in specs if spec]
    if not found or len(found) > MOST:
        return None
    wanted: list[tuple[int, int]] = []
    for spec in found:
        if spec is None:
            return None
        first, last, length = spec.groups()
        if length is not None:
            begin, end = max(0, size - int(length)), size - 1
        else:
            begin, end = int(first), int(last) if last else size - 1
            if last and int(last) < begin:
                return None
        if begin < size and begin <= end:
            wanted.append((begin, min(end, size - 1)))
    return wanted


def has_changed(etag: str, modified: datetime, if_range: str | None) -> bool:
    """Whether ``If-Range`` asks for the whole file instead of a part: it is of another one."""
    if if_range is None or if_range == etag:
        return False
    return _date(if_range) != modified


def is_known(etag: str, modified: datetime, if_none_match: str | None, if_modified_since: str | None) -> bool:
    """Whether the client has it: it is answered with 304."""
    if if_none_match is not None:
        return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)
    since = None if if_modified_since is None else _date(if_modified_since)
    return since is not None and modified <= since


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
