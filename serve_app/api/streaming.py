"""What routes declare whose request or answer is large or takes its time: the gate asks."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: Where a handler has what it declares.
DECLARED = "__streams__"
#: Where it has how large its body may be.
LARGEST = "__largest__"
#: Bytes of a request with the files in it: one of 10 MiB in base64.
MAX_BYTES = 14_000_000


@dataclass(frozen=True, kw_only=True)
class Party:
    """On whose behalf a stream is, as its path says."""

    name: str
    #: Streams that it may have at a time.
    most: int
    worker: bool = False
    #: The path alone is no permission: each key that asks by it is a party of its own.
    of_each_key: bool = False


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What a route that streams allows."""

    #: Whose it is, by the request's path.
    party: Callable[[str], Party]
    #: Bytes of a request body.
    max_bytes: int
    #: Seconds for all of it; None for as long as it moves.
    seconds: float | None


def streams(*, party: Callable[[str], Party], max_bytes: int = 0, seconds: float | None = None) -> Callable[[F], F]:
    """Declare that a handler reads its request, or writes its answer, piece by piece."""

    def declare(handler: F) -> F:
        setattr(handler, DECLARED, Streams(party=party, max_bytes=max_bytes, seconds=seconds))
        return handler

    return declare


class Live(Enum):
    """Why a route's answer may take as long as a job does."""

    #: Events, one after another.
    STREAM = auto()
    #: It is held where the client prefers that (``api/prefer.py``).
    WAIT = auto()


def live(why: Live) -> Callable[[F], F]:
    """Declare that a handler's answer may take as long as a job."""

    def declare(handler: F) -> F:
        setattr(handler, DECLARED, why)
        return handler

    return declare


def large(*, max_bytes: int) -> Callable[[F], F]:
    """Declare that a request's body may be so large. It lies on disk when the handler is called (``api/spool.py``)."""

    def declare(handler: F) -> F:
        setattr(handler, LARGEST, max_bytes)
        return handler

    return declare
