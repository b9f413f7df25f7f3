"""The ends of a flow, whatever comes in which order: a program is told of an end only if it has got everything.

Two programs, and between them the two halves of a flow as on a node and its hub: ``program - plain | framed - wire -
framed | plain - program``. Hypothesis decides who sends, ends, dies, what is delivered in which pieces, and when the
path is cut.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.mesh import flow
from cluster.mesh.flow import Endpoint, FramedEndpoint, InProcessEndpoint, PlainEndpoint, splice
from cluster.mesh.pieces import DONE, END, PIECE
from tests.unit.cluster.mesh.fake_transport import FakeTransport, Turns

#: Small, so that short texts fill buffers and take every way through the code.
HIGH, LOW, EARLY, SMALL = 32, 8, 16, 8
#: Bytes that are read at a time at most.
CHUNK = 20


@pytest.fixture(autouse=True, scope="module")
def _small_buffers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_HIGH", HIGH), ("_LOW", LOW), ("_EARLY", EARLY), ("_SMALL", SMALL)):
            patch.setattr(flow, name, value)
        yield


@dataclass
class Program:
    """One that talks to its own machine, over TCP."""

    transport: FakeTransport
    to_send: bytearray = field(default_factory=bytearray)
    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    finished: bool = False
    told_finish: bool = False
    got_end: bool = False
    dead: bool = False


class World:
    """The flow and everything around it. Side 0 connects to side 1."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.plain = [PlainEndpoint(), PlainEndpoint()]
        self.framed = [FramedEndpoint(), FramedEndpoint()]
        self.programs = [Program(FakeTransport(self.turns, end, half_closes=True)) for end in self.plain]
        self.wire = [FakeTransport(self.turns, end, half_closes=False) for end in self.framed]
        self.spliced = [False, False]
        self.faults = 0

    def do(self, action: str, side: int, count: int) -> None:
        program, near, far = self.programs[side], self.wire[side], self.wire[1 - side]
        match action:
            case "send" if not (program.finished or program.dead):
                text = bytes((len(program.sent) + number) % 251 for number in range(8 * count))
                program.sent += text
                program.to_send += text
            case "finish":
                program.finished = True
            case "splice" if not self.spliced[side]:
                self.spliced[side] = True
                splice(self.plain[side], self.framed[side])
            case "from program":
                for _ in range(4):
                    self._from_program(program, count)
            case "to program":
                self._to_program(program, 4 * count)
            case "across":
                for _ in range(4):
                    self._across(near, far, count)
            case "die" if not program.transport.lost:
                self.faults += 1
                program.dead = True
                program.transport.out.clear()
                program.transport.lose(ConnectionResetError())
            case "cut" if not (near.lost and far.lost):
                self.faults += 1
                for transport in self.wire:
                    transport.out.clear()
                    transport.lose(TimeoutError())
            case "linger" if near.closing and near.out and not near.lost:
                # A closing TLS connection waits some seconds for a slow reader, then drops the rest.
                near.abort()
        self.turns.run()

    def _from_program(self, program: Program, count: int) -> None:
        transport = program.transport
        if program.dead or transport.lost or not transport.reading:
            return
        text = bytes(program.to_send[:count])
        del program.to_send[:count]
        if text:
            transport.give(text)
        elif program.finished and not program.told_finish:
            program.told_finish = True
            transport.end()

    def _to_program(self, program: Program, count: int) -> None:
        if not program.dead:
            program.got += program.transport.take(count)
            # An aborted connection looks like an orderly end, unless it is a reset.
            orderly = program.transport.lost and not program.transport.socket.will_reset
            program.got_end = program.got_end or program.transport.has_ended or orderly

    def _across(self, near: FakeTransport, far: FakeTransport, count: int) -> None:
        if far.reading or far.closing:
            if text := near.take(count):
                far.give(text)
            elif near.has_ended:
                far.end()
            elif near.cut:
                far.lose(ConnectionResetError())
        elif near.cut:
            far.lose(ConnectionResetError())

    def check(self) -> None:
        """What holds at any moment."""
        for near, far in ((0, 1), (1, 0)):
            sender, receiver = self.programs[near], self.programs[far]
            assert sender.sent.startswith(receiver.got)
            if receiver.got_end:
                assert sender.finished
                assert receiver.got == sender.sent
        for transport in (*self.wire, *(program.transport for program in self.programs)):
            # On top of a full buffer: one chunk, or what came early; lengths before pieces; END and DONE.
            assert transport.most <= HIGH + EARLY + CHUNK + 6 * PIECE.size
        for side in (0, 1):
            for end in (self.plain[side], self.framed[side]):
                assert self.spliced[side] or end.received <= EARLY + CHUNK

    def drain(self) -> None:
        """Everybody reads, and everything is delivered."""
        for _ in range(200):
            for side in (0, 1):
                for action in ("splice", "from program", "across", "to program"):
                    self.do(action, side, CHUNK)
        self.check()


sides = st.integers(0, 1)
step = st.tuples(
    st.sampled_from(["send", "finish", "splice", "from program", "from program", "across", "to program", "linger"]),
    sides,
    st.integers(1, CHUNK),
)
steps = st.lists(step, max_size=20) | st.lists(step, min_size=40, max_size=80)
faults = st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["die", "cut"]), sides), max_size=2)
calm = settings(max_examples=300)


@calm
@given(steps)
def test_without_faults_everything_arrives_and_every_end_is_told(plan: list[tuple[str, int, int]]) -> None:
    world = World()
    for action, side, count in plan:
        world.do(action, side, count)
        world.check()
    world.drain()
    for near, far in ((0, 1), (1, 0)):
        assert world.programs[far].got == world.programs[near].sent
        assert world.programs[far].got_end == world.programs[near].finished
    over = world.programs[0].finished and world.programs[1].finished
    ends: list[Endpoint] = [*world.plain, *world.framed]
    assert [end.lost for end in ends] == [over] * 4
    assert not any(program.transport.socket.will_reset for program in world.programs)


@calm
@given(steps, faults)
@example(
    [("splice", 0, 1), ("splice", 1, 1), ("send", 0, 5), ("finish", 0, 1), ("from program", 0, 9)], [(5, "cut", 0)]
)
def test_after_a_fault_nobody_hangs_and_nobody_takes_a_part_for_the_whole(
    plan: list[tuple[str, int, int]], what_fails: list[tuple[int, str, int]]
) -> None:
    world = World()
    for position, fault, side in sorted(what_fails, reverse=True):
        plan = [*plan[:position], (fault, side, 1), *plan[position:]]
    for action, side, count in plan:
        world.do(action, side, count)
        world.check()
    world.drain()
    if world.faults:
        ends: list[Endpoint] = [*world.plain, *world.framed]
        assert all(end.lost for end in ends)
        for near, far in ((0, 1), (1, 0)):
            program = world.programs[far]
            # Cut, unless it had everything and had said everything.
            assert program.dead or program.transport.socket.will_reset or (program.got_end and program.finished)
            if program.got_end:
                assert program.got == world.programs[near].sent


def framed() -> tuple[FramedEndpoint, FakeTransport, Turns]:
    turns, end = Turns(), FramedEndpoint()
    return end, FakeTransport(turns, end, half_closes=False), turns


def piece(text: bytes) -> bytes:
    return PIECE.pack(len(text)) + text


@given(st.lists(st.integers(1, 12), max_size=20))
def test_a_data_connection_says_end_and_confirms_the_other_s(cuts: list[int]) -> None:
    end, transport, _ = framed()
    plain = PlainEndpoint()
    program = FakeTransport(Turns(), plain, half_closes=True)
    splice(plain, end)
    stream = piece(b"question") + END
    for size in cuts:
        transport.give(stream[:size])
        stream = stream[size:]
    transport.give(stream)
    assert (program.take(100), program.eof_wanted) == (b"question", True)
    assert transport.take(100) == DONE
    program.give(b"answer")
    program.end()
    assert transport.take(100) == piece(b"answer") + END
    assert not transport.closing
    transport.give(DONE)
    assert transport.closing
    assert not transport.cut


@pytest.mark.parametrize("wrong", [DONE, END + END, END + piece(b"x"), piece(b"x") + DONE, b"\x00\xff\xff\xff"])
def test_a_data_connection_that_breaks_the_rules_is_cut_and_its_program_with_it(wrong: bytes) -> None:
    end, transport, turns = framed()
    plain = PlainEndpoint()
    program = FakeTransport(turns, plain, half_closes=True)
    splice(plain, end)
    transport.give(wrong)
    assert transport.cut
    turns.run()
    assert program.socket.will_reset
    assert program.lost


@pytest.mark.parametrize("first", ["plain", "framed"])
def test_whoever_is_gone_before_the_splice_takes_the_other_along(first: str) -> None:
    end, transport, turns = framed()
    plain = PlainEndpoint()
    program = FakeTransport(turns, plain, half_closes=True)
    (program if first == "plain" else transport).lose(None)
    turns.run()
    splice(plain, end)
    assert (program.cut, program.socket.will_reset) == (first == "framed", first == "framed")
    assert transport.cut == (first == "plain")


def test_a_splice_that_fails_leaves_neither_open(monkeypatch: pytest.MonkeyPatch) -> None:
    end, transport, turns = framed()
    plain = PlainEndpoint()
    program = FakeTransport(turns, plain, half_closes=True)
    program.give(b"early")

    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(end, "send", fail)
    with pytest.raises(ZeroDivisionError):
        splice(plain, end)
    assert (program.cut, transport.cut) == (True, True)


async def test_an_end_in_this_process_sends_one_text_and_gets_one() -> None:
    asking, telling = InProcessEndpoint(), InProcessEndpoint(b"the answer")
    near, near_wire, _ = framed()
    far, far_wire, _ = framed()
    splice(asking, near)
    far_wire.give(near_wire.take(100))
    splice(telling, far)
    for _ in range(3):
        near_wire.give(far_wire.take(100))
        far_wire.give(near_wire.take(100))
    assert await asyncio.wait_for(asking.reply, 1) == b"the answer"
    assert (near_wire.closing, far_wire.closing) == (True, True)


async def test_an_end_in_this_process_whose_flow_is_cut_has_no_reply() -> None:
    asking = InProcessEndpoint()
    end, transport, turns = framed()
    splice(asking, end)
    transport.give(piece(b"half of it"))
    transport.abort()
    turns.run()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(asking.reply, 1)


async def test_an_end_in_this_process_is_not_told_too_much() -> None:
    telling = InProcessEndpoint(b"the answer")
    end, transport, _ = framed()
    splice(telling, end)
    transport.give(piece(bytes(EARLY + 1)))
    assert transport.cut
