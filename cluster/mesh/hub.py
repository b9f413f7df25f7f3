"""The head's end of the mesh: one public port; admits nodes and keeps them in step with the registry."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, Self

import structlog

from cluster.mesh import admission
from cluster.mesh.acceptor import Acceptor
from cluster.mesh.control import ControlConnection, PendingConnection
from cluster.mesh.counters import Counters, NodeTraffic, Stats, Total
from cluster.mesh.depot import Depot
from cluster.mesh.flow import switch_protocol
from cluster.mesh.identity import HubIdentity
from cluster.mesh.listeners import Listeners
from cluster.mesh.plan import HEAD, Slot, slot
from cluster.mesh.reception import OnReport, Reception, ReceptionLimits
from cluster.mesh.registry import Node, NodeRegistry, Sighting
from cluster.mesh.router import FlowRouter, Session
from cluster.mesh.sockets import raise_file_limit
from cluster.mesh.tasks import Tasks, log_failure
from cluster.mesh.turns import Turns
from cluster.mesh.wire import (
    Accept,
    Fetch,
    Frame,
    Hello,
    Join,
    Open,
    Peers,
    Reason,
    Report,
    Say,
    Undialable,
    WireError,
)

log = structlog.get_logger()


@dataclass(frozen=True)
class HubLimits:
    """Seconds and counts."""

    #: For TLS, the first frame and, if it asks to join, the answer.
    handshake_s: float = 5.0
    #: Connections that have sent nothing, and those within the handshake; see ``acceptor``. Each kind also takes an
    #: eighth of this process's file descriptors at most.
    silent: int = 2048
    pending: int = 1024
    #: One question to the registry. Less than ``handshake_s``: whoever asks to join hears that it takes too long.
    registry_s: float = 3.0
    #: Invited ones whom the registry is asked about at a time.
    joining: int = 8
    #: A new flow waits so long for its node's connection.
    connect_wait_s: float = 20.0
    #: A node that says nothing for so long is away and its flows are cut: behind a TCP proxy, TCP itself can't know.
    silence_s: float = 15.0
    flows_per_node: int = 4096
    #: How often the registry is asked; another process's revocation takes effect within this time.
    sync_s: float = 5.0
    #: How often traffic is reported to the registry.
    report_s: float = 15.0
    #: For those who have been invited and have not joined.
    reception: ReceptionLimits = field(default_factory=ReceptionLimits)


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
        fixed_answers: Mapping[int, bytes] | None = None,
        listen_on: Callable[[Slot], str] = lambda slot: slot.address,
        depot: Depot | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        """``port`` 0 picks a free one, see :attr:`port`. ``fixed_answers``: what nodes read on these ports of the head,
        where no socket listens. For ``listen_on`` see :class:`Listeners`, for the last two :class:`Reception`."""
        self.port = port
        self._host = host
        self._identity = identity
        self._registry = registry
        self._limits = limits or HubLimits()
        self._counters = Counters()
        self._tasks = Tasks()
        #: Done, with an exception, if the hub can't go on: whoever runs it has to end it.
        self.failed = self._tasks.failed
        self.failed.add_done_callback(_log_end)
        self._router = FlowRouter(
            self._counters,
            self._tasks,
            fixed_answers or {},
            connect_wait_s=self._limits.connect_wait_s,
            flows_per_node=self._limits.flows_per_node,
        )
        strangers = raise_file_limit() // 8
        self._acceptor = Acceptor(
            identity.server_context(),
            self._counters,
            self._tasks,
            self._admit,
            handshake_s=self._limits.handshake_s,
            silent=min(self._limits.silent, strangers),
            pending=min(self._limits.pending, strangers),
        )
        self._listeners = Listeners(self._router.open_local, listen_on)
        self._listened_for: frozenset[Slot] = frozenset()
        registry_s = self._limits.registry_s
        self._reading, self._reporting = Turns(self._tasks, 1, registry_s), Turns(self._tasks, 1, registry_s)
        self._reception = Reception(
            identity,
            registry,
            Turns(self._tasks, self._limits.joining, registry_s),
            self._counters,
            self._tasks,
            self._limits.reception,
            nodes=lambda: self._nodes,
            on_joined=self._on_joined,
            depot=depot,
            on_report=on_report,
        )
        #: Nodes that have joined since the list was last asked for. It may be older than that, and must not undo it.
        self._joined: dict[int, Node] = {}
        self._nodes: dict[int, Node] = {}
        #: Slots whose node has been connected.
        self._seen: set[int] = set()
        #: Traffic and counters as last reported.
        self._reported: dict[int, tuple[int, int]] = {}
        self._counted: Counter[Total] = Counter()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Read the registry, open the nodes' addresses on this machine, then the port.

        Raises OSError if the port is taken, and the registry's own errors.
        """
        # First: a hub that does not know its nodes yet would refuse their keys, and a refused node gives up for good.
        await self.sync()
        self.port = self._acceptor.listen(self._host, self.port)
        for loop in (self._keep_in_sync(), self._watch()):
            self._tasks.run_loop(loop)
        log.info("mesh.hub_up", port=self.port, nodes=len(self._live()))

    async def close(self) -> None:
        """Stop listening, cut every flow and connection, report the last traffic."""
        await self._acceptor.close()
        self._listeners.close()
        await self._tasks.close()
        self._router.close()
        try:
            await self._report()
        except Exception as error:
            log.error("mesh.registry_failed", error=type(error).__name__)
        self._tasks.abandon()

    def stats(self) -> Stats:
        """Counters up to now."""
        router = self._router
        nodes = tuple(
            NodeTraffic(
                node.slot,
                node.name,
                router.session(node.slot) is not None,
                router.flows(node.slot),
                *router.traffic(node.slot),
            )
            for node in self._live()
        )
        return self._counters.stats(router.data_connections(), nodes, self._listeners.missing)

    async def sync(self) -> None:
        """Read the registry: let go of nodes that are gone, listen for new ones.

        Raises TimeoutError if it takes too long, and the registry's own errors.
        """
        await self._reading.ask(self._read)
        await self._listen()

    async def _read(self) -> None:
        self._joined.clear()
        nodes = {node.slot: node for node in await self._registry.nodes()}
        for number, node in self._joined.items():
            if number not in nodes or nodes[number].key_hash != node.key_hash:
                nodes[number] = node
        self._set_nodes(nodes)

    # Admission

    async def _admit(self, pending: PendingConnection, frame: Frame) -> bool:
        """What a connection asks for. False: turned away. Raises :class:`WireError`: not a first frame."""
        match frame:
            case Join():
                await self._reception.join(pending, frame)
                return False
            case Fetch():
                return await self._reception.fetch(pending, frame)
            case Say():
                await self._reception.say(pending, frame)
                return False
            case Hello():
                node = admission.authenticate(self._nodes, frame)
                if isinstance(node, Reason):
                    self._reception.refuse(pending, node)
                    return False
                self._greet(pending, frame, node)
                return True
            case Open() | Accept():
                node = admission.authenticate(self._nodes, frame)
                if isinstance(node, Reason):
                    self._counters.refused[node.name.lower()] += 1
                    return False
                if isinstance(frame, Open):
                    return self._router.open(pending, frame)
                return self._router.accept(pending, frame)
            case _:
                raise WireError("not a first frame")

    async def _on_joined(self, node: Node) -> None:
        self._joined[node.slot] = node
        self._set_nodes(self._nodes | {node.slot: node})
        await self._listen()

    def _greet(self, pending: PendingConnection, frame: Hello, node: Node) -> None:
        """A node's control connection."""
        assert pending.transport is not None
        self._counters.reconnects += node.slot in self._seen
        self._seen.add(node.slot)
        control = ControlConnection(partial(self._on_frame, node.slot))
        switch_protocol(pending.transport, control, pending.unread())
        control.send(Peers((HEAD.number,)))
        self._router.attach(node.slot, Session(control, frame.instance))
        log.info("mesh.node_up", slot=node.slot, name=node.name)

    def _on_frame(self, number: int, frame: Frame) -> None:
        match frame:
            case Undialable():
                self._router.undialable(number, frame.flow)
            case Report():
                self._reception.hear(self._nodes[number], frame.text)
            case _:
                raise WireError("not for a hub")

    # Upkeep

    def _live(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.live]

    def _set_nodes(self, nodes: dict[int, Node]) -> None:
        """Make these the nodes; :meth:`_listen` has to follow."""
        before = {node.slot: node for node in self._live()}
        self._nodes = nodes
        live = {node.slot: node for node in self._live()}
        for number, old in before.items():
            if number not in live or live[number].key_hash != old.key_hash:
                log.info("mesh.dropped", slot=number, name=old.name)
                self._router.drop(number)
                self._seen.discard(number)
        for number in live.keys() - before.keys():
            # Not the traffic of the slot's last node.
            self._reported[number] = self._router.traffic(number)

    async def _listen(self) -> None:
        """Listen for exactly the nodes that there are. Goes on to its end if whoever asked for it has left."""
        wanted = frozenset(slot(node.slot) for node in self._live())
        if wanted != self._listened_for or self._listeners.missing:
            self._listened_for = wanted
            await self._tasks.finish(self._listeners.serve(wanted))

    async def _keep_in_sync(self) -> NoReturn:
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
        await self._reporting.ask(self._tell)

    async def _tell(self) -> None:
        traffic = {node.slot: self._router.traffic(node.slot) for node in self._live()}
        sightings = []
        for node in self._live():
            now, last = traffic[node.slot], self._reported.get(node.slot, (0, 0))
            if node.key_hash is not None and (self._router.session(node.slot) is not None or now != last):
                sightings.append(Sighting(node.slot, node.key_hash, now[0] - last[0], now[1] - last[1]))
        counted = self.stats().totals()
        await self._registry.report(sightings, counted - self._counted)
        self._reported.update(traffic)
        self._counted = counted

    async def _watch(self) -> NoReturn:
        """Cut nodes and flows that have died without closing their connections."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            for number, session in self._router.sessions().items():
                if loop.time() - session.control.last_heard > self._limits.silence_s:
                    log.warning("mesh.node_silent", slot=number)
                    session.control.abort()
                    self._counters.dead += self._router.cut(number)
            self._router.cut_dead(loop.time())


def _log_end(failed: "asyncio.Future[NoReturn]") -> None:
    if not failed.cancelled() and (error := failed.exception()) is not None:
        log_failure(error, task="hub")
