"""The hub's flows: finds each one's other end and splices them."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from cluster.mesh import counters
from cluster.mesh.admission import may_open
from cluster.mesh.control import ControlConnection, PendingConnection
from cluster.mesh.counters import Counters
from cluster.mesh.flow import Endpoint, FramedEndpoint, InProcessEndpoint, PlainEndpoint, splice, switch_protocol
from cluster.mesh.plan import HEAD, Slot
from cluster.mesh.tasks import Tasks
from cluster.mesh.transports import TcpTransport, connect
from cluster.mesh.wire import FLOW_ID_BYTES, Accept, Dial, Open, Reason, Refused

log = structlog.get_logger()


@dataclass(frozen=True)
class Session:
    """A node's control connection. ``instance`` tells processes with one key apart."""

    control: ControlConnection
    instance: bytes


@dataclass(frozen=True)
class _Dialing:
    """A flow that waits for its node to come back."""

    slot: int
    arrived: asyncio.Future[Endpoint]


class FlowRouter:
    """Holds the nodes' sessions and data connections. Who may have one is decided before it is called."""

    def __init__(
        self,
        counts: Counters,
        tasks: Tasks,
        fixed_answers: Mapping[int, bytes],
        *,
        connect_wait_s: float,
        flows_per_node: int,
    ) -> None:
        """``fixed_answers``: what is sent on these ports of the head, without a program there. ``connect_wait_s``: how
        long a new flow waits for its node's session."""
        self._counters = counts
        self._tasks = tasks
        self._fixed_answers = fixed_answers
        self._connect_wait_s = connect_wait_s
        self._flows_per_node = flows_per_node
        self._sessions: dict[int, Session] = {}
        self._data_connections: defaultdict[int, set[Endpoint]] = defaultdict(set)
        #: Bytes from and to each node by flows that have ended.
        self._ended: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._dialing: dict[bytes, _Dialing] = {}
        self._awaited: dict[int, asyncio.Future[Session]] = {}

    # Sessions

    def attach(self, number: int, session: Session) -> None:
        """A node's control connection: the newest one wins."""
        old = self._sessions.get(number)
        if old is not None and old.instance == session.instance:
            old.control.abort()
        elif old is not None:
            # Another process has the key. The old one may hang without closing anything, so its flows go as well.
            self._counters.refused[Reason.REPLACED.name.lower()] += 1
            log.warning("mesh.replaced", slot=number)
            old.control.close(Refused(Reason.REPLACED))
            self.cut(number)
        self._sessions[number] = session
        session.control.lost.add_done_callback(lambda _: self._on_lost(number, session))
        awaited = self._awaited.pop(number, None)
        if awaited is not None:
            awaited.set_result(session)

    def session(self, number: int) -> Session | None:
        """The node's session, None while it is away."""
        return self._sessions.get(number)

    def sessions(self) -> dict[int, Session]:
        """All sessions by slot, a copy."""
        return dict(self._sessions)

    def drop(self, number: int) -> None:
        """The node has been revoked: tell it, end everything."""
        old = self._sessions.get(number)
        if old is not None:
            old.control.close(Refused(Reason.REVOKED))
        awaited = self._awaited.pop(number, None)
        if awaited is not None:
            awaited.set_exception(ConnectionAbortedError())
            # The flows that waited may be gone.
            awaited.exception()
        for dialing in self._dialing.values():
            if dialing.slot == number and not dialing.arrived.done():
                dialing.arrived.set_exception(ConnectionAbortedError())
        self.cut(number)

    def _on_lost(self, number: int, lost: Session) -> None:
        if self._sessions.get(number) is lost:
            del self._sessions[number]
            log.info("mesh.node_down", slot=number)

    # Flows

    def open(self, pending: PendingConnection, frame: Open) -> bool:
        """A node wants a flow. False if it can't have it."""
        if not may_open(frame, self._fixed_answers):
            self._counters.refused[counters.OUTSIDE_PLAN] += 1
            log.warning("mesh.outside_plan", slot=frame.slot, target=frame.target, port=frame.port)
            return False
        connection = self._admit_data(pending, frame.slot)
        if connection is None:
            return False
        self._find_other_end(connection, partial(self._connect_head, frame.port))
        return True

    def accept(self, pending: PendingConnection, frame: Accept) -> bool:
        """A node brings the data connection that it was asked for. False if it wasn't asked."""
        dialing = self._dialing.get(frame.flow)
        if dialing is None or dialing.slot != frame.slot or dialing.arrived.done():
            self._counters.refused[counters.UNKNOWN_FLOW] += 1
            return False
        connection = self._admit_data(pending, frame.slot)
        if connection is None:
            dialing.arrived.set_exception(ConnectionAbortedError())
            return False
        dialing.arrived.set_result(connection)
        return True

    def undialable(self, number: int, flow: bytes) -> None:
        """The node says that nothing answers there."""
        dialing = self._dialing.get(flow)
        if dialing is not None and dialing.slot == number and not dialing.arrived.done():
            dialing.arrived.set_exception(ConnectionRefusedError())

    def open_local(self, endpoint: Endpoint, target: Slot, port: int) -> None:
        """A program on the head connects to a node's port."""
        self._find_other_end(endpoint, partial(self._dial, target.number, port))

    def cut(self, number: int) -> int:
        """End all of a node's flows; how many that were."""
        connections = tuple(self._data_connections[number])
        for connection in connections:
            connection.abort()
        return len(connections)

    def cut_dead(self, now: float) -> None:
        """End the flows whose path has died. ``now`` is the loop's time."""
        for connection in self.data_connections():
            if connection.transport is not None and connection.path.is_dead(connection.transport, now):
                self._counters.dead += 1
                connection.abort()

    def close(self) -> None:
        """End all data connections and sessions."""
        for number in tuple(self._data_connections):
            self.cut(number)
        for session in self._sessions.values():
            session.control.close()

    def data_connections(self) -> tuple[Endpoint, ...]:
        """All open data connections."""
        return tuple(connection for connections in self._data_connections.values() for connection in connections)

    def flows(self, number: int) -> int:
        """How many data connections the node has."""
        return len(self._data_connections[number])

    def traffic(self, number: int) -> tuple[int, int]:
        """Bytes from and to the node."""
        ended_in, ended_out = self._ended[number]
        connections = self._data_connections[number]
        return (
            ended_in + sum(connection.received for connection in connections),
            ended_out + sum(connection.sent for connection in connections),
        )

    def _admit_data(self, pending: PendingConnection, number: int) -> Endpoint | None:
        """Make it a data connection of that node. None if it has too many."""
        connections = self._data_connections[number]
        if len(connections) >= self._flows_per_node:
            self._counters.refused[counters.TOO_MANY] += 1
            return None
        assert pending.transport is not None
        connection = FramedEndpoint()

        def lost(endpoint: Endpoint) -> None:
            connections.discard(endpoint)
            self._counters.end(endpoint)
            ended_in, ended_out = self._ended[number]
            self._ended[number] = (ended_in + endpoint.received, ended_out + endpoint.sent)

        connection.on_lost = lost
        connections.add(connection)
        self._counters.flows_total += 1
        switch_protocol(pending.transport, connection, pending.unread())
        return connection

    def _find_other_end(self, endpoint: Endpoint, find: Callable[[], Awaitable[Endpoint]]) -> None:
        """Connect the flow's other end and splice, unless this one goes meanwhile."""
        task = self._tasks.serve(self._carry(endpoint, find), endpoint.abort)
        on_lost = endpoint.on_lost

        def lost(gone: Endpoint) -> None:
            task.cancel()
            if on_lost is not None:
                on_lost(gone)

        endpoint.on_lost = lost

    async def _carry(self, endpoint: Endpoint, find: Callable[[], Awaitable[Endpoint]]) -> None:
        try:
            other = await find()
        except ConnectionRefusedError:
            self._counters.refused[counters.NOBODY_THERE] += 1
            endpoint.abort()
        except OSError:
            self._counters.refused[counters.PEER_DOWN] += 1
            endpoint.abort()
        else:
            splice(endpoint, other)

    async def _connect_head(self, port: int) -> Endpoint:
        """The head's end of a flow. Raises OSError."""
        if port in self._fixed_answers:
            return InProcessEndpoint(self._fixed_answers[port])
        endpoint = PlainEndpoint()
        TcpTransport(await connect(HEAD.address, port), endpoint)
        return endpoint

    async def _dial(self, number: int, port: int) -> Endpoint:
        """Have a node connect to its port and come back. Raises OSError; TimeoutError after ``connect_wait_s``."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_wait_s):
            while True:
                session = self._sessions.get(number) or await self._await_session(number)
                flow = secrets.token_bytes(FLOW_ID_BYTES)
                arrived: asyncio.Future[Endpoint] = loop.create_future()
                self._dialing[flow] = _Dialing(number, arrived)
                handed = False
                try:
                    session.control.send(Dial(flow, port))
                    either: set[asyncio.Future[Any]] = {arrived, session.control.lost}
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if arrived.done():
                        handed = True
                        return arrived.result()
                finally:
                    del self._dialing[flow]
                    if not handed and arrived.done() and arrived.exception() is None:
                        arrived.result().abort()

    async def _await_session(self, number: int) -> Session:
        awaited = self._awaited.get(number)
        if awaited is None:
            awaited = self._awaited[number] = asyncio.get_running_loop().create_future()
        # Shared by all that wait for this node.
        return await asyncio.shield(awaited)
