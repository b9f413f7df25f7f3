"""The hub's flows: finds each one's other end and splices them.

A node reaches the head and the head reaches nodes, each at the ports that Ray needs there. Nodes don't reach each
other: nothing of ours asks for it, and what goes wrong on a rented machine stays on it.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from cluster.mesh import counters
from cluster.mesh.control import Control, Opening
from cluster.mesh.counters import Counters
from cluster.mesh.flow import Framed, Inside, Plain, Side, hand_over, link
from cluster.mesh.plan import HEAD, Slot
from cluster.mesh.stream import Stream, connect
from cluster.mesh.wire import FLOW_ID_BYTES, Accept, Dial, Open, Reason, Refused

log = structlog.get_logger()


@dataclass(frozen=True)
class Line:
    """A node's control connection. ``instance`` tells processes with one key apart."""

    control: Control
    instance: bytes


@dataclass(frozen=True)
class _Dialing:
    """A flow that waits for its node to come back."""

    slot: int
    arrived: asyncio.Future[Side]


class Switchboard:
    """Holds the nodes' lines and data connections ("legs"). Who may have one is decided before it is called."""

    def __init__(self, counts: Counters, told: Mapping[int, bytes], *, park_s: float, flows_per_node: int) -> None:
        """``told``: what is answered on these ports of the head, without any program there. ``park_s``: how long a new
        flow waits for its node's line."""
        self._counters = counts
        self._told = told
        self._park_s = park_s
        self._most = flows_per_node
        self._lines: dict[int, Line] = {}
        self._legs: defaultdict[int, set[Side]] = defaultdict(set)
        #: Bytes from and to each node by flows that have ended.
        self._ended: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._dialing: dict[bytes, _Dialing] = {}
        self._awaited: dict[int, asyncio.Future[Line]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Lines

    def attach(self, number: int, line: Line) -> None:
        """A node's control connection: the newest one wins."""
        old = self._lines.get(number)
        if old is not None and old.instance == line.instance:
            old.control.abort()
        elif old is not None:
            # Another process has the key. The old one may be a ghost, so its flows go as well.
            self._counters.refused[Reason.REPLACED.name.lower()] += 1
            log.warning("mesh.replaced", slot=number)
            old.control.close(Refused(Reason.REPLACED))
            self.cut(number)
        self._lines[number] = line
        line.control.lost.add_done_callback(lambda _: self._on_lost(number, line))
        awaited = self._awaited.pop(number, None)
        if awaited is not None:
            awaited.set_result(line)

    def line(self, number: int) -> Line | None:
        """The node's line, None while it is away."""
        return self._lines.get(number)

    def lines(self) -> dict[int, Line]:
        """All lines by slot, a copy."""
        return dict(self._lines)

    def drop(self, number: int) -> None:
        """The node is none any more: tell it, end everything."""
        old = self._lines.get(number)
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

    def _on_lost(self, number: int, lost: Line) -> None:
        if self._lines.get(number) is lost:
            del self._lines[number]
            log.info("mesh.node_down", slot=number)

    # Flows

    def open(self, opening: Opening, frame: Open) -> bool:
        """A node wants a flow. False if it can't have it."""
        if frame.target != HEAD.number or not (frame.port in HEAD.forwarded or frame.port in self._told):
            self._counters.refused[counters.OUTSIDE_PLAN] += 1
            log.warning("mesh.outside_plan", slot=frame.slot, target=frame.target, port=frame.port)
            return False
        leg = self._leg(opening, frame.slot)
        if leg is None:
            return False
        self._begin(leg, partial(self._reach, frame.port))
        return True

    def accept(self, opening: Opening, frame: Accept) -> bool:
        """A node brings the leg that it was asked for. False if it wasn't."""
        dialing = self._dialing.get(frame.flow)
        if dialing is None or dialing.slot != frame.slot or dialing.arrived.done():
            self._counters.refused[counters.UNKNOWN_FLOW] += 1
            return False
        leg = self._leg(opening, frame.slot)
        if leg is None:
            dialing.arrived.set_exception(ConnectionAbortedError())
            return False
        dialing.arrived.set_result(leg)
        return True

    def undialable(self, number: int, flow: bytes) -> None:
        """The node says that nothing answers there."""
        dialing = self._dialing.get(flow)
        if dialing is not None and dialing.slot == number and not dialing.arrived.done():
            dialing.arrived.set_exception(ConnectionRefusedError())

    def local(self, side: Side, target: Slot, port: int) -> None:
        """A program on the head connects to a node's port."""
        self._begin(side, partial(self._dial, target.number, port))

    def cut(self, number: int) -> int:
        """End all of a node's flows; how many legs that were."""
        legs = tuple(self._legs[number])
        for leg in legs:
            leg.abort()
        return len(legs)

    def cut_dead(self, now: float) -> None:
        """End the flows whose path has died. ``now`` is the loop's time."""
        for leg in self.legs():
            if leg.transport is not None and leg.pulse.is_dead(leg.transport, now):
                self._counters.dead += 1
                leg.abort()

    async def close(self) -> None:
        """End everything."""
        doomed = tuple(self._tasks)
        for task in doomed:
            task.cancel()
        for number in tuple(self._legs):
            self.cut(number)
        for line in self._lines.values():
            line.control.close()
        await asyncio.gather(*doomed, return_exceptions=True)

    def legs(self) -> tuple[Side, ...]:
        """All open data connections."""
        return tuple(leg for legs in self._legs.values() for leg in legs)

    def flows(self, number: int) -> int:
        """How many data connections the node has."""
        return len(self._legs[number])

    def traffic(self, number: int) -> tuple[int, int]:
        """Bytes from and to the node."""
        ended_in, ended_out = self._ended[number]
        legs = self._legs[number]
        return ended_in + sum(leg.received for leg in legs), ended_out + sum(leg.sent for leg in legs)

    def _leg(self, opening: Opening, number: int) -> Side | None:
        """Make the connection a leg of that node. None if it has too many."""
        legs = self._legs[number]
        if len(legs) >= self._most:
            self._counters.refused[counters.TOO_MANY] += 1
            return None
        assert opening.transport is not None
        leg = Framed()

        def lost(side: Side) -> None:
            legs.discard(side)
            self._counters.end(side)
            ended_in, ended_out = self._ended[number]
            self._ended[number] = (ended_in + side.received, ended_out + side.sent)

        leg.on_lost = lost
        legs.add(leg)
        self._counters.flows_total += 1
        hand_over(opening.transport, leg, opening.rest())
        return leg

    def _begin(self, side: Side, find: Callable[[], Awaitable[Side]]) -> None:
        """Find the other end, unless this one goes meanwhile."""
        task = asyncio.create_task(self._carry(side, find))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        on_lost = side.on_lost

        def lost(gone: Side) -> None:
            task.cancel()
            if on_lost is not None:
                on_lost(gone)

        side.on_lost = lost

    async def _carry(self, side: Side, find: Callable[[], Awaitable[Side]]) -> None:
        try:
            other = await find()
        except ConnectionRefusedError:
            self._counters.refused[counters.NOBODY_THERE] += 1
            side.abort()
        except OSError:
            self._counters.refused[counters.PEER_DOWN] += 1
            side.abort()
        except asyncio.CancelledError:
            side.abort()
            raise
        else:
            link(side, other)

    async def _reach(self, port: int) -> Side:
        """The head's end of a flow. Raises OSError."""
        if port in self._told:
            return Inside(self._told[port])
        side = Plain()
        Stream(await connect(HEAD.address, port), side)
        return side

    async def _dial(self, number: int, port: int) -> Side:
        """Have a node connect to its port and come back. Raises OSError; TimeoutError after ``park_s``."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._park_s):
            while True:
                line = self._lines.get(number) or await self._await_line(number)
                flow = secrets.token_bytes(FLOW_ID_BYTES)
                arrived: asyncio.Future[Side] = loop.create_future()
                self._dialing[flow] = _Dialing(number, arrived)
                handed = False
                try:
                    line.control.send(Dial(flow, port))
                    either: set[asyncio.Future[Any]] = {arrived, line.control.lost}
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if arrived.done():
                        handed = True
                        return arrived.result()
                finally:
                    del self._dialing[flow]
                    if not handed and arrived.done() and arrived.exception() is None:
                        arrived.result().abort()

    async def _await_line(self, number: int) -> Line:
        awaited = self._awaited.get(number)
        if awaited is None:
            awaited = self._awaited[number] = asyncio.get_running_loop().create_future()
        # Shared by all that wait for this node.
        return await asyncio.shield(awaited)
