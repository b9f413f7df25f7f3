"""What ``video-api doctor`` finds of a part."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.settings import Settings


class State(StrEnum):
    OK = "ok"
    #: Not set up. What is missing without it is said.
    UNSET = "unset"
    #: Set up, and does not work.
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What is known of a part, and what to do about it."""

    state: State
    found: str
    remedy: str = ""


Look = Callable[["Settings"], Awaitable[Finding]]
