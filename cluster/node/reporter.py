"""Says to the head how far this node is: every few seconds, and when a step begins."""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import structlog

from cluster.bootstrap.head import Head, HeadRefuses
from cluster.bootstrap.progress import Progress
from cluster.mesh.dialer import HubAddress

log = structlog.get_logger()

EVERY_S = 10.0
#: The steps of a node. Idle: Ray is up, and it can take work.
WEIGHTS, JOINING, IDLE = "weights", "joining", "idle"
#: What a fault begins with that is no fault of this machine: with these weights, none becomes a node.
REFUSED_WEIGHTS = "weights: "


class Reporter:
    """One node's. What is said while the hub is away is lost; it is said again."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._progress = Progress()

    def begin(self, step: str) -> None:
        log.info("node.step", step=step)
        self._progress.begin(step)
        self._say()

    def measure(self, done: int, total: int) -> None:
        """So many bytes of what this step fetches are here."""
        self._progress.measure(done, total)

    def fail(self, fault: str) -> None:
        """Say why this node ends. No secret in it."""
        self._progress.fail(fault)
        self._say()

    async def run(self) -> NoReturn:
        """Say it again and again."""
        while True:
            await asyncio.sleep(EVERY_S)
            self._say()

    def _say(self) -> None:
        self._send(self._progress.text())


def complain(hub: HubAddress, token: str, fault: str) -> None:
    """Say why this machine does not join, which whoever has rented it should hear. That nobody does is no matter."""
    progress = Progress()
    progress.begin(JOINING)
    progress.fail(fault)
    try:
        Head(f"{hub.host}:{hub.port}", token).say(progress.text())
    except (OSError, ValueError, HeadRefuses) as error:
        log.info("node.not_heard", error=str(error) or type(error).__name__)
