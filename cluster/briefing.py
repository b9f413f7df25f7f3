"""What the head tells a node before it starts Ray: versions to match, where Ray's head is, the cluster's token.

Served on the head's loopback address, which others reach through the mesh alone: whoever reads it has been admitted.
"""

import asyncio
import json
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Self

import ray

from cluster.mesh.plan import HEAD

#: Seconds for one attempt to get it.
FETCH_S = 30.0


class BadBriefing(ConnectionError):
    """What came is no briefing; the head may have gone in the middle."""


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """Everything a node needs to know of its head."""

    ray: str
    #: Major and minor: pickled code does not pass between two of them.
    python: str
    #: Address of the head's GCS, ``host:port``.
    address: str
    token: str = field(repr=False)

    @classmethod
    def of_this_head(cls, token: str) -> Self:
        """As this process is."""
        return cls(ray=ray.__version__, python=python_version(), address=f"{HEAD.address}:{HEAD.gcs}", token=token)

    def mismatch(self) -> str | None:
        """Why this process could not be a node of that head; None if it can."""
        mine = {"Ray": ray.__version__, "Python": python_version()}
        theirs = {"Ray": self.ray, "Python": self.python}
        wrong = [f"{name} is {mine[name]} here and {theirs[name]} there" for name in mine if mine[name] != theirs[name]]
        return ", ".join(wrong) or None


def python_version() -> str:
    """Of this process, e.g. ``3.11``."""
    return ".".join(platform.python_version_tuple()[:2])


@asynccontextmanager
async def serving(briefing: Briefing, host: str = HEAD.address, port: int = HEAD.briefing) -> AsyncIterator[None]:
    """Tell it to everybody who connects."""
    text = json.dumps(asdict(briefing)).encode()

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(tell, host, port)
    try:
        yield
    finally:
        server.close()


async def fetch(host: str = HEAD.address, port: int = HEAD.briefing) -> Briefing:
    """Ask the head. Raises OSError; then try again."""
    async with asyncio.timeout(FETCH_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            text = await reader.read(65536)
        finally:
            writer.close()
    try:
        return Briefing(**json.loads(text))
    except (ValueError, TypeError):
        raise BadBriefing("the head's briefing can't be read") from None
