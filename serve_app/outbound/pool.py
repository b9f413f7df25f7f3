"""The way out: requests handed to a few processes, fairly between owners."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import structlog

from serve_app.fair import FairSlots
from serve_app.outbound.addresses import Network
from serve_app.outbound.base import OutboundError, OutboundUnavailable, PostReply
from serve_app.outbound.limits import DEFAULTS, Limits
from serve_app.outbound.process import WorkerLost, WorkerProcess

log = structlog.get_logger()

#: An owner is in one of them at a time, so servers that cost us much slow down only who shares it.
_PROCESSES = 2
#: Requests under way, and how many of them for one owner: a bound whatever the callers do. They have their own shares.
_SLOTS, _SHARE = 128, 48
#: Requests that are tried again after their process was lost, each in one of its own; and of one owner.
_SUSPECTS, _SUSPECTS_SHARE = 4, 2


class WorkerPool:
    """An :class:`~serve_app.outbound.base.Outbound`. Processes are started when needed and replaced when lost.

    What a lost process had in hand is tried once more by itself, so that a request that breaks its process can't break
    others again; it is nobody's fault unless that fails, too.
    """

    def __init__(
        self,
        allow_networks: tuple[Network, ...] = (),
        limits: Limits = DEFAULTS,
        dns_servers: Sequence[str] = (),
    ) -> None:
        """``dns_servers`` as ``host:port``, instead of the system's."""
        self._config = {
            "allow_networks": [str(network) for network in allow_networks],
            "limits": asdict(limits),
            "dns_servers": list(dns_servers),
        }
        self._slots = FairSlots(_SLOTS, _SHARE)
        self._workers: list[WorkerProcess] = []
        self._starting = asyncio.Lock()
        self._suspects = FairSlots(_SUSPECTS, _SUSPECTS_SHARE)

    async def start(self) -> None:
        """Start the processes and see that they work; otherwise the first request does.

        Raises:
            WorkerLost: one ended at once. It has said why on stderr.
        """
        for worker in await self._running():
            await worker.ask({"do": "ping"})

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        """See :class:`~serve_app.outbound.base.Outbound`."""
        request = {"do": "download", "owner": owner, "url": url, "path": str(path), "max_bytes": max_bytes}
        return int((await self._go(owner, request))["size"])

    async def post(self, url: str, content: str, headers: Mapping[str, str], *, owner: str = "") -> PostReply:
        """See :class:`~serve_app.outbound.base.Outbound`."""
        request = {"do": "post", "owner": owner, "url": url, "content": content, "headers": dict(headers)}
        reply = await self._go(owner, request)
        return PostReply(reply["status"], reply["text"], reply["retry_after_s"])

    async def aclose(self) -> None:
        """End all processes."""
        workers, self._workers = self._workers, []
        for worker in workers:
            await worker.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _go(self, owner: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        async with self._slots.hold(owner):
            try:
                reply = await (await self._pick(owner)).ask(request)
            except WorkerLost as loss:
                log.warning("outbound_worker_lost", pid=loss.pid, do=request["do"], owner=owner)
                reply = await self._go_alone(owner, request)
        if "error" in reply:
            raise OutboundError(**reply["error"])
        if "unavailable" in reply:
            raise OutboundUnavailable(reply["unavailable"])
        if "errno" in reply:
            raise OSError(reply["errno"], reply["strerror"])
        if "crashed" in reply:
            raise RuntimeError(f"an outbound worker failed:\n{reply['crashed']}")
        return reply

    async def _pick(self, owner: str) -> WorkerProcess:
        """Where the owner is already, else where least is going on."""
        workers = await self._running()
        return next((worker for worker in workers if worker.busy[owner]), None) or min(
            workers, key=lambda worker: worker.busy.total()
        )

    async def _running(self) -> Sequence[WorkerProcess]:
        async with self._starting:
            self._workers = [worker for worker in self._workers if worker.alive]
            while len(self._workers) < _PROCESSES:
                self._workers.append(await self._start())
            return self._workers

    async def _go_alone(self, owner: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        async with self._suspects.hold(owner):
            worker = await self._start()
            try:
                return await worker.ask(request)
            finally:
                await worker.aclose()

    async def _start(self) -> WorkerProcess:
        try:
            return await WorkerProcess.start(self._config)
        except OSError as error:
            raise OutboundUnavailable(f"no process can be started: {error.strerror}") from error
