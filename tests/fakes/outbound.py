"""A way out that leads nowhere: every receiver says 200."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.outbound.base import OutboundUnavailable, PostReply


@dataclass
class FakeOutbound:
    """``posted`` are the URLs and owners; with ``unavailable`` nothing goes out."""

    posted: list[tuple[str, str]] = field(default_factory=list)
    unavailable: bool = False

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        raise NotImplementedError

    async def post(self, url: str, content: str, headers: Mapping[str, str], *, owner: str = "") -> PostReply:
        if self.unavailable:
            raise OutboundUnavailable("the way out is closed")
        self.posted.append((url, owner))
        return PostReply(200, "")
