"""What the service needs of the network, and how that fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

Reason = Literal["unreachable", "rejected", "forbidden", "too_large"]


class OutboundError(Exception):
    """The other side's fault. ``message`` tells whoever named the link what to do about it.

    ``transient`` says whether the same request may succeed later.
    """

    def __init__(self, reason: Reason, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.transient = transient


class OutboundUnavailable(Exception):
    """Our fault: the other side has not had its chance, so it's no attempt. Try again later."""


class PostReply(NamedTuple):
    """How a server answered a POST."""

    status: int
    #: What it sent of its body while we listened, for the log.
    text: str
    #: Seconds that it asks us to stay away (``Retry-After``); None if it says nothing of it.
    retry_after_s: float | None = None


class Outbound(Protocol):
    """The way out. ``owner`` is on whose behalf we go, a user of a key (``key/user``): they share it fairly.

    All methods raise :class:`OutboundError` or :class:`OutboundUnavailable`.
    """

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        """Fetch ``url`` to ``path``, following redirects; the number of bytes. When it fails, no file is left.

        Raises OSError if our own disk fails.
        """
        ...

    async def post(self, url: str, content: str, headers: Mapping[str, str], *, owner: str = "") -> PostReply:
        """POST and return the answer, whatever its status. Redirects are answers like any other and not followed."""
        ...
