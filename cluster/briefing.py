"""What the head tells a node before it starts Ray: versions to match, where Ray's head is, the cluster's token.

The hub says it to nodes, on a port that no socket listens on, here or there: whoever reads it has been admitted.
"""

import asyncio
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from typing import Self

import ray

from cluster.mesh.agent import Agent
from cluster.mesh.plan import HEAD

#: Seconds for one attempt to get it.
FETCH_S = 30.0


class BadBriefing(ConnectionError):
    """What came is no briefing; the head may have gone in the middle."""


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """Everything a node needs to know of its head."""

    ray: str
    #: Major and minor: pickled code does not pass between two of them. Ray is told to compare no more, either.
    python: str
    #: Address of the head's GCS, ``host:port``.
    address: str
    token: str = field(repr=False)
    #: Of this repository. Empty: a head from before it was told.
    version: str = ""
    #: What the autoscaler calls nodes that nobody has rented. Empty: there is none, or it is an older head.
    by_hand: str = ""

    @classmethod
    def of_this_head(cls, token: str, version: str, by_hand: str = "") -> Self:
        """As this process is, whose code is of ``version``."""
        return cls(
            ray=ray.__version__,
            python=python_version(),
            address=f"{HEAD.address}:{HEAD.gcs}",
            token=token,
            version=version,
            by_hand=by_hand,
        )

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what :meth:`text` wrote, here or in a later version. Raises :class:`BadBriefing`."""
        known = {each.name for each in fields(cls)}
        try:
            # What a later version tells besides must not hide that it is one.
            return cls(**{name: value for name, value in json.loads(text).items() if name in known})
        except (ValueError, TypeError, AttributeError):
            raise BadBriefing("the head's briefing can't be read") from None

    def text(self) -> bytes:
        """What the hub is to tell."""
        return json.dumps(asdict(self)).encode()

    def mismatch(self, version: str) -> str | None:
        """Why this process, whose code is of ``version``, could not be a node of that head; None if it can."""
        mine = {"video-api": version, "Ray": ray.__version__, "Python": python_version()}
        theirs = {"video-api": self.version or "an older one", "Ray": self.ray, "Python": self.python}
        wrong = [f"{name} is {mine[name]} here and {theirs[name]} there" for name in mine if mine[name] != theirs[name]]
        return ", ".join(wrong) or None


def python_version() -> str:
    """Of this process, e.g. ``3.11``."""
    return ".".join(platform.python_version_tuple()[:2])


async def fetch(agent: Agent) -> Briefing:
    """Ask the head. Raises OSError; then try again."""
    async with asyncio.timeout(FETCH_S):
        return Briefing.parse(await agent.read(HEAD.briefing))
