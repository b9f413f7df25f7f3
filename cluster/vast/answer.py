"""What Vast's answers mean. Errors come in many shapes: an object with ``error``, ``msg``, ``message`` or ``detail``,
in any mixture, status 200 among them; or a line of plain text; or a proxy's page.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from cluster.vast.errors import (
    NoCredit,
    RateLimited,
    Refused,
    SearchQuotaExceeded,
    Unauthorized,
    Unavailable,
    VastError,
)

#: Characters of a message that are kept: some answers are whole pages.
_KEPT = 300
#: What replaces a secret. Shorter ones than this could be any word.
_HIDDEN, _SECRET_LENGTH = "***", 6
#: Seconds that can't be a moment, so the header is meant as a distance.
_YEAR_S = 366 * 86400
#: What a 403 says that is about who asks; any other is about what is asked for.
_OF_KEYS = ("auth", "api key", "api_key", "permission", "scope", "not allowed for this key")
_NO_CREDIT = ("insufficient_credit", "insufficient credit", "no credit", "lacks credit")


@dataclass(frozen=True)
class Answer:
    """An answer that came, not judged yet."""

    status: int
    #: The object that was sent; None if it was none.
    data: Mapping[str, Any] | None
    #: Vast's word for an error, and its message, both without secrets; empty where there is none.
    code: str
    text: str
    headers: httpx.Headers

    @classmethod
    def read(cls, response: httpx.Response, secrets: Sequence[str]) -> "Answer":
        data: Any = None
        try:
            data = json.loads(response.content)
        except ValueError:
            text = response.text
        else:
            text = "" if isinstance(data, dict | list) or data is None else str(data)
        code = ""
        if isinstance(data, dict):
            error = data.get("error")
            code = error if isinstance(error, str) and not error.count(" ") else ""
            said = (data.get(name) for name in ("msg", "message", "detail", "error"))
            text = next((str(each) for each in said if each), "")
        return cls(
            status=response.status_code,
            data=data if isinstance(data, dict) else None,
            code=_without(secrets, code),
            text=_without(secrets, " ".join(text.split()))[:_KEPT],
            headers=response.headers,
        )

    @property
    def ok(self) -> bool:
        """It did what was asked for."""
        return 200 <= self.status < 300 and self.data is not None and self.data.get("success") is not False

    def says(self, *words: str) -> bool:
        """Whether the error is one of these: as its name, or within its message."""
        said = f"{self.code} {self.text}".lower()
        return any(word in said for word in words)

    def fault(self, now: datetime) -> VastError:
        """Why it is not ``ok``. What only one call can get (an offer that is gone) that call looks for first."""
        what = ": ".join(dict.fromkeys(filter(None, (self.code, self.text)))) or "no reason given"
        if self.status == 429:
            return self._limited(now)
        if self.status == 401 or (self.status == 403 and (not self.code + self.text or self.says(*_OF_KEYS))):
            return Unauthorized(f"Vast does not accept the key, or not for this ({what}).")
        if self.status == 402 or self.says(*_NO_CREDIT):
            return NoCredit(f"The account at Vast has no credit left ({what}).")
        if 300 <= self.status < 400:
            # Never followed: the key would go wherever it points.
            return Refused(f"Vast redirects ({self.status}): the API's address is wrong.", status=self.status)
        if self.status >= 500 or (self.data is None and self.status < 300):
            return Unavailable(f"Vast answers {self.status}: {what}.")
        return Refused(f"Vast refuses ({self.status}): {what}.", status=self.status, code=self.code)

    def _limited(self, now: datetime) -> RateLimited:
        after_s = _seconds(self.headers.get("retry-after"), now)
        if self.says("search_quota_exceeded"):
            # New ones come at midnight UTC; that is what is left if the header says nothing.
            midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
            wait_s = _seconds(self.headers.get("x-ratelimit-reset"), now)
            until = midnight if wait_s is None else now + timedelta(seconds=wait_s)
            return SearchQuotaExceeded(until, (until - now).total_seconds())
        return RateLimited("Vast wants fewer requests.", retry_after_s=after_s)


def _seconds(header: str | None, now: datetime) -> float | None:
    """From now: the header is a number of seconds, a moment in Unix time, or a date. None if it is anything else."""
    if header is None:
        return None
    try:
        number = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        # Without a zone it is meant in UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - now).total_seconds())
    if not 0 <= number < float("inf"):
        return None
    return number if number < _YEAR_S else min(max(0.0, number - now.timestamp()), _YEAR_S)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, _HIDDEN)
    return text
