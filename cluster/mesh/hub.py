"""The head's end of the mesh: one public port; admits nodes and keeps them in step with the registry."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import structlog

from cluster.mesh.control import Control, Opening
from cluster.mesh.counters import Counters, NodeTraffic, Stats, Total
from cluster.mesh.door import Door
from cluster.mesh.flow import hand_over
from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.listeners import Listeners
from cluster.mesh.plan import HEAD, SLOTS, Slot, slot
from cluster.mesh.registry import JoinRefused, Node, NodeRegistry, Sighting
from cluster.mesh.sockets import raise_file_limit
from cluster.mesh.switchboard import Line, Switchboard
from cluster.mesh.wire import (
    Accept,
    Frame,
    Hello,
    Join,
    Joined,
    Open,
    Peers,
    Reason,
    Refused,
    Undialable,
    WireError,
    encode,
)

log = structlog.get_logger()


@dataclass(frozen=True)
class HubLimits:
    """Seconds and counts."""

    #: For TLS and the first frame.
    handshake_s: float = 5.0
    #: Connections that have not said who they are.
    pending: int = 256
    #: A new flow waits so long for its node's connection.
    park_s: float = 20.0
    #: A node that says nothing for so long is away and its flows are cut: behind a TCP proxy, TCP itself can't know.
    silence_s: float = 15.0
    flows_per_node: int = 4096
    #: How often the registry is asked; another process's revocation takes effect within this time.
    sync_s: float = 5.0
    #: How often traffic is reported to the registry.
    report_s: float = 15.0


class Hub:
    """The hub. ``async with`` it, or :meth:`start` and :meth:`close`. One per head."""

    def __init__(
        self,
        identity: HubIdentity,
        registry: NodeRegistry,
        *,
        host: str = "0.0.0.0",  # noqa: S104 - the port that the whole cluster comes in by
        port: int,
        limits: HubLimits | None = None,
        listen_on: Callable[[Slot], str] = lambda slot: slot.address,
    ) -> None:
        """``port`` 0 picks a free one, see :attr:`port`; for ``listen_on`` see :class:`Listeners`."""
        self.port = port
        self._host = host
        self._registry = registry
        self._limits = limits or HubLimits()
        self._counters = Counters()
        self._switchboard = Switchboard(
            self._counters, self._find, park_s=self._limits.park_s, flows_per_node=self._limits.flows_per_node
        )
        self._door = Door(
            identity.server_context(),
            self._counters,
            self._enter,
            handshake_s=self._limits.handshake_s,
            pending=self._limits.pending,
        )
        self._listeners = Listeners(self._switchboard.local, listen_on)
        #: One reader or writer of the registry at a time: a list read before a join must not undo it.
        self._registering = asyncio.Lock()
        self._nodes: dict[int, Node] = {}
        #: Slots whose node has been connected.
        self._seen: set[int] = set()
        #: Traffic and counters as last reported.
        self._reported: dict[int, tuple[int, int]] = {}
        self._counted: Counter[Total] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._push: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Read the registry, open the nodes' addresses on this machine, then the port.

        Raises OSError if the port is taken, and the registry's own errors.
        """
        raise_file_limit()
        # Before this the hub would take its nodes for strangers, and tell them so.
        await self.sync()
        self.port = self._door.open(self._host, self.port)
        self._tasks = {asyncio.create_task(self._keep_in_sync()), asyncio.create_task(self._watch())}
        log.info("mesh.hub_up", port=self.port, nodes=len(self._live()))

    async def close(self) -> None:
        """Stop listening, cut every flow and connection, report the last traffic."""
        if self._push is not None:
            self._push.cancel()
        await self._door.close()
        self._listeners.close()
        doomed = tuple(self._tasks)
        for task in doomed:
            task.cancel()
        await self._switchboard.close()
        await asyncio.gather(*doomed, return_exceptions=True)
        try:
            await self._report()
        except Exception as error:
            log.error("mesh.registry_failed", error=type(error).__name__)

    def stats(self) -> Stats:
        """Counters up to now."""
        board = self._switchboard
        nodes = tuple(
            NodeTraffic(
                node.slot,
                node.name,
                board.line(node.slot) is not None,
                board.flows(node.slot),
                *board.traffic(node.slot),
            )
            for node in self._live()
        )
        return self._counters.stats(board.legs(), nodes, self._listeners.missing)

    async def revoke(self, number: int) -> bool:
        """Drop a node: its key, its connection and all its flows, now. False if there is none."""
        revoked = await self._registry.revoke(number)
        await self.sync()
        return revoked

    async def sync(self) -> None:
        """Read the registry: let go of nodes that are gone, listen for new ones, tell the others."""
        async with self._registering:
            await self._apply({node.slot: node for node in await self._registry.nodes()})

    # Admission

    def _enter(self, opening: Opening, frame: Frame) -> bool:
        """What a connection asks for. False: refused without a word. Raises :class:`WireError`: not an opening."""
        match frame:
            case Join():
                task = asyncio.create_task(self._join(opening, frame))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return True
            case Hello():
                node = self._authenticate(frame.slot, frame.key)
                if isinstance(node, Reason):
                    self._refuse(opening, node)
                else:
                    self._greet(opening, frame, node)
                return True
            case Open() | Accept():
                node = self._authenticate(frame.slot, frame.key)
                if isinstance(node, Reason):
                    self._counters.refused[node.name.lower()] += 1
                    return False
                if isinstance(frame, Open):
                    return self._switchboard.open(opening, frame)
                return self._switchboard.accept(opening, frame)
            case _:
                raise WireError("not an opening")

    def _authenticate(self, number: int, key: bytes) -> Node | Reason:
        node = self._nodes.get(number)
        if node is None or node.key_hash is None or not hmac.compare_digest(node.key_hash, digest(key)):
            return Reason.BAD_KEY
        return Reason.REVOKED if node.revoked_at is not None else node

    def _refuse(self, opening: Opening, reason: Reason) -> None:
        """Say why, then close."""
        self._counters.refused[reason.name.lower()] += 1
        if opening.transport is not None:
            opening.transport.write(encode(Refused(reason)))
            opening.transport.close()

    async def _join(self, opening: Opening, frame: Join) -> None:
        try:
            async with self._registering:
                node = await self._registry.redeem(digest(frame.secret), frame.key_hash, frame.name)
                await self._apply(self._nodes | {node.slot: node})
        except JoinRefused as error:
            self._refuse(opening, error.reason)
        except Exception as error:
            log.error("mesh.registry_failed", error=type(error).__name__)
            self._refuse(opening, Reason.UNAVAILABLE)
        else:
            log.info("mesh.joined", slot=node.slot, name=node.name)
            if opening.transport is not None:
                opening.transport.write(encode(Joined(node.slot)))
                opening.transport.close()

    def _greet(self, opening: Opening, frame: Hello, node: Node) -> None:
        """A node's control connection."""
        assert opening.transport is not None
        self._counters.reconnects += node.slot in self._seen
        self._seen.add(node.slot)
        control = Control(partial(self._on_frame, node.slot))
        hand_over(opening.transport, control, opening.rest())
        control.send(self._peers())
        self._switchboard.attach(node.slot, Line(control, frame.instance))
        log.info("mesh.node_up", slot=node.slot, name=node.name)

    def _on_frame(self, number: int, frame: Frame) -> None:
        if not isinstance(frame, Undialable):
            raise WireError("not for a hub")
        self._switchboard.undialable(number, frame.flow)

    def _find(self, number: int, port: int) -> Slot | None:
        """See :class:`Switchboard`."""
        if not 1 <= number <= SLOTS:
            return None
        target = slot(number)
        known = target == HEAD or ((node := self._nodes.get(number)) is not None and node.live)
        return target if known and port in target.forwarded else None

    # Upkeep

    def _live(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.live]

    def _peers(self) -> Peers:
        return Peers((HEAD.number, *sorted(node.slot for node in self._live())))

    async def _apply(self, nodes: dict[int, Node]) -> None:
        """Make these the nodes."""
        before = {node.slot: node for node in self._live()}
        self._nodes = nodes
        live = {node.slot: node for node in self._live()}
        for number, old in before.items():
            if number not in live or live[number].key_hash != old.key_hash:
                log.info("mesh.dropped", slot=number, name=old.name)
                self._switchboard.drop(number)
                self._seen.discard(number)
        for number in live.keys() - before.keys():
            # Not the traffic of the slot's last node.
            self._reported[number] = self._switchboard.traffic(number)
        changed = live.keys() != before.keys()
        if changed or self._listeners.missing:
            await self._listeners.serve(slot(number) for number in live)
        if changed and self._push is None:
            # Many nodes that join at once are told once.
            self._push = asyncio.get_running_loop().call_later(0.05, self._push_peers)

    def _push_peers(self) -> None:
        self._push = None
        peers = self._peers()
        for line in self._switchboard.lines().values():
            line.control.send(peers)

    async def _keep_in_sync(self) -> None:
        loop = asyncio.get_running_loop()
        reported = loop.time()
        while True:
            await asyncio.sleep(self._limits.sync_s)
            try:
                await self.sync()
                if loop.time() - reported >= self._limits.report_s:
                    reported = loop.time()
                    await self._report()
            except Exception as error:
                # The mesh goes on with the nodes it knows; nobody can join meanwhile.
                log.error("mesh.registry_failed", error=type(error).__name__)

    async def _report(self) -> None:
        """Tell the registry who is there, and what has happened since the last time."""
        traffic = {node.slot: self._switchboard.traffic(node.slot) for node in self._live()}
        sightings = []
        for node in self._live():
            now, last = traffic[node.slot], self._reported.get(node.slot, (0, 0))
            if node.key_hash is not None and (self._switchboard.line(node.slot) is not None or now != last):
                sightings.append(Sighting(node.slot, node.key_hash, now[0] - last[0], now[1] - last[1]))
        counted = self.stats().totals()
        await self._registry.report(sightings, counted - self._counted)
        self._reported.update(traffic)
        self._counted = counted

    async def _watch(self) -> None:
        """Cut what has died without a word."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            for number, line in self._switchboard.lines().items():
                if loop.time() - line.control.last_heard > self._limits.silence_s:
                    log.warning("mesh.node_silent", slot=number)
                    line.control.abort()
                    self._counters.dead += self._switchboard.cut(number)
            self._switchboard.cut_dead(loop.time())
