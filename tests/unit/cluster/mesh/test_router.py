"""Whose data connection belongs to which flow, without a socket."""

import asyncio
from typing import cast

from cluster.mesh.control import ControlConnection, PendingConnection
from cluster.mesh.counters import Counters
from cluster.mesh.flow import FramedEndpoint, PlainEndpoint
from cluster.mesh.pieces import END, PIECE
from cluster.mesh.plan import HEAD, slot
from cluster.mesh.router import FlowRouter, Session
from cluster.mesh.tasks import Tasks
from cluster.mesh.wire import Accept, Dial, Frame, FrameReader, Open
from tests.unit.cluster.mesh.fake_transport import FakeTransport, Turns

KEY = bytes(32)


class Node:
    """A node's session as the hub has it, and what it was asked."""

    def __init__(self, router: FlowRouter, number: int, turns: Turns) -> None:
        control = ControlConnection(lambda frame: None)
        self._transport = FakeTransport(turns, control, half_closes=False)
        self._reader = FrameReader()
        router.attach(number, Session(control, bytes(16)))

    def asked(self) -> Frame | None:
        self._reader.feed(self._transport.take(1000))
        return self._reader.next()


class Hub:
    """A router with nodes 2 and 3 connected."""

    def __init__(self, flows_per_node: int = 10) -> None:
        self.turns, self.counters = Turns(), Counters()
        answers = {HEAD.briefing: b"the answer"}
        self.router = FlowRouter(self.counters, Tasks(), answers, connect_wait_s=5, flows_per_node=flows_per_node)
        self.nodes = {number: Node(self.router, number, self.turns) for number in (2, 3)}

    def pending(self) -> tuple[PendingConnection, FakeTransport]:
        """A connection whose first frame has come."""
        connection = PendingConnection()
        return connection, FakeTransport(self.turns, connection, half_closes=False)

    async def dial(self, number: int) -> tuple[FakeTransport, Dial]:
        """A program of the head connects to that node, which is asked to come back."""
        program = PlainEndpoint()
        transport = FakeTransport(self.turns, program, half_closes=True)
        self.router.open_local(program, slot(number), slot(number).workers[0])
        await turn()
        return transport, cast("Dial", self.nodes[number].asked())


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_node_that_was_asked_brings_the_flow_once() -> None:
    hub = Hub()
    program, dial = await hub.dial(2)
    assert dial.port == slot(2).workers[0]
    # Neither another node, though it is one, nor a flow that nobody asked for.
    assert not hub.router.accept(hub.pending()[0], Accept(3, KEY, dial.flow))
    assert not hub.router.accept(hub.pending()[0], Accept(2, KEY, bytes(16)))
    pending, transport = hub.pending()
    assert hub.router.accept(pending, Accept(2, KEY, dial.flow))
    assert not hub.router.accept(hub.pending()[0], Accept(2, KEY, dial.flow))
    assert hub.counters.refused == {"unknown_flow": 3}
    await turn()
    program.give(b"hello")
    assert transport.take(100) == PIECE.pack(5) + b"hello"
    assert isinstance(transport.get_protocol(), FramedEndpoint)


async def test_only_the_node_that_was_asked_may_say_that_nothing_answers() -> None:
    hub = Hub()
    program, dial = await hub.dial(2)
    hub.router.undialable(3, dial.flow)
    await turn()
    assert not program.lost
    hub.router.undialable(2, dial.flow)
    await turn()
    assert (program.lost, program.socket.will_reset) == (True, True)
    assert hub.counters.refused == {"nobody_there": 1}


async def test_a_node_that_is_revoked_loses_its_flows_and_no_other_does() -> None:
    hub = Hub()
    (two, _), (three, _) = [await hub.dial(number) for number in (2, 3)]
    hub.router.drop(2)
    await turn()
    assert (two.lost, three.lost) == (True, False)


async def test_a_fixed_answer_needs_no_program() -> None:
    hub = Hub()
    pending, transport = hub.pending()
    assert hub.router.open(pending, Open(2, KEY, 1, HEAD.briefing))
    await turn()
    assert transport.take(100) == PIECE.pack(10) + b"the answer" + END


async def test_outside_the_plan_and_too_many() -> None:
    hub = Hub(flows_per_node=1)
    assert not hub.router.open(hub.pending()[0], Open(2, KEY, 3, HEAD.gcs))
    assert not hub.router.open(hub.pending()[0], Open(2, KEY, 1, HEAD.dashboard))
    assert hub.router.open(hub.pending()[0], Open(2, KEY, 1, HEAD.briefing))
    assert not hub.router.open(hub.pending()[0], Open(2, KEY, 1, HEAD.briefing))
    assert hub.router.open(hub.pending()[0], Open(3, KEY, 1, HEAD.briefing))
    assert hub.counters.refused == {"outside_plan": 2, "too_many": 1}
