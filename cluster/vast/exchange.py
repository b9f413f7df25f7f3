"""One request to Vast: with the key, in its turn, and judged; again and again where that can do no harm."""

import random
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from cluster.vast.answer import Answer
from cluster.vast.errors import RateLimited, SearchQuotaExceeded, Unavailable, VastError
from cluster.vast.pacing import Clock, Endpoint, Pace, SystemClock

BASE_URL = "https://console.vast.ai"
TIMEOUT_S = 30.0
#: Of a call that may be repeated.
TRIES = 4
#: Seconds before the second try, doubled for each further one; up to half of it is left to chance.
_BACKOFF_S = 1.0
#: The same after being told to come less often, without being told how long to stay away.
_LIMITED_S = 5.0
#: Who is told to stay away for longer hears of it instead of waiting.
_LONGEST_WAIT_S = 60.0

#: Whether the answer is fine after all, e.g. that what is to be destroyed is not there.
Fine = Callable[[Answer], bool]


class NotSent(Exception):
    """The request did not leave this machine."""


class NoAnswer(Exception):
    """The request may have arrived; what became of it is not known."""


class Exchange:
    """A pool of connections and the account's key."""

    def __init__(
        self,
        key: str,
        base_url: str = BASE_URL,
        *,
        clock: Clock | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Raises ValueError for a key or an address that can't be one."""
        # An HTTP library would quote a header that it can't send.
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("the key is empty, or has characters that no key has")
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
            raise ValueError("the address has to be http:// or https://, a host, and no user or query")
        self.clock = clock or SystemClock()
        self.pace = Pace(self.clock)
        self._key = key
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, trust_env=False, headers={"authorization": f"Bearer {key}"}
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def once(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
    ) -> Answer:
        """In its turn, one time. ``secrets`` are kept out of what the answer says, as the key is.

        Raises:
            NotSent, NoAnswer: there is none.
        """
        async with self.pace.turn(endpoint):
            try:
                response = await self._http.request(method, path, json=body, params=params)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                raise NotSent(type(error).__name__) from error
            except httpx.HTTPError as error:
                raise NoAnswer(type(error).__name__) from error
        return Answer.read(response, (self._key, *secrets))

    async def repeatable(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        fine: Fine = lambda answer: answer.ok,
    ) -> Answer:
        """An answer that is ``fine``, after up to ``TRIES`` requests. Raises :class:`VastError`."""
        for number in range(1, TRIES + 1):
            error: VastError
            try:
                answer = await self.once(endpoint, method, path, body=body, params=params)
            except (NotSent, NoAnswer) as lost:
                error = Unavailable(f"Vast does not answer ({lost}).")
                error.__cause__ = lost
            else:
                if fine(answer):
                    return answer
                error = answer.fault(self.clock.now())
            if number == TRIES or (wait_s := _wait(error, number)) is None:
                raise error
            self.pace.pause(endpoint, wait_s)
        raise AssertionError("the last try returns or raises")


def _wait(error: VastError, number: int) -> float | None:
    """Seconds until the next try; None if it would end no better, or not soon."""
    if isinstance(error, RateLimited):
        return limited_wait(error, number)
    if not isinstance(error, Unavailable):
        return None
    return _spread(_BACKOFF_S * 2 ** (number - 1))


def limited_wait(error: RateLimited, number: int) -> float | None:
    """The same, for one who was told to come less often. Never shorter than was said."""
    if isinstance(error, SearchQuotaExceeded):
        return None
    if error.retry_after_s is None:
        return _spread(_LIMITED_S * 2 ** (number - 1))
    return error.retry_after_s if error.retry_after_s <= _LONGEST_WAIT_S else None


def _spread(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)  # noqa: S311 - spreads load
