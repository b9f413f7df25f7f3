"""A fleet and all that it deals with, on virtual time: market, nodes, books, and the mesh's door."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.fleet.caps import Caps
from cluster.fleet.door import Admission, DoorFull, Guest
from cluster.fleet.fleet import Fleet
from cluster.fleet.limits import Limits
from cluster.fleet.rental import Rental, State
from cluster.fleet.report import Report
from cluster.fleet.slots import Node
from cluster.vast.client import VastClient
from cluster.vast.cost import Work
from cluster.vast.node_type import GPU_4090, GPU_A100
from cluster.vast.provider import Kind, VastProvider
from tests.fakes.books import MemoryBooks, Shelf
from tests.fakes.vast import KEY, Contract, FakeVast, offer
from tests.fakes.vast_server import VastServer
from tests.fakes.vast_transport import connect
from tests.fakes.virtual_time import LoopClock

PREFIX = "video-api-test"
TYPE = GPU_4090.name
IMAGE_BYTES, WEIGHT_BYTES = 6e9, 1e9
WORK = Work(
    image_bytes=IMAGE_BYTES,
    package_bytes=0,
    weight_bytes=WEIGHT_BYTES,
    media_in_bytes=0,
    media_out_bytes=0,
    setup_s=60,
    busy_s=600,
    idle_s=120,
)
KIND = Kind(node=GPU_4090, work=WORK, image="pytorch/pytorch@sha256:1")
#: A second type, for which there are offers if a test makes them.
OTHER = GPU_A100.name
OTHER_KIND = Kind(node=GPU_A100, work=WORK, image="pytorch/pytorch@sha256:1")
CAPS = Caps(usd_per_hour=20, usd_per_day=400, usd_per_instance_hour=1, nodes={TYPE: 20})
#: Seconds of a node's steps, after its container runs.
STEPS = ((State.INSTALLING, 20.0), (State.WEIGHTS, 60.0), (State.JOINING, 15.0))


class MemoryDoor:
    """See :class:`cluster.fleet.door.Door`."""

    def __init__(self) -> None:
        self.admitted: list[str] = []
        self.revoked: list[str] = []
        self.by_hand: list[Guest] = []
        self.full = self.broken = False

    async def admit(self, label: str) -> Admission:
        if self.full:
            raise DoorFull
        if self.broken:
            raise OSError("the door is stuck")
        self.admitted.append(label)
        return Admission(f"key-of-{label}", {"TOKEN": "token-of-the-test"})

    async def revoke(self, key: str) -> None:
        if self.broken:
            raise OSError("the door is stuck")
        self.revoked.append(key)

    async def guests(self) -> Sequence[Guest]:
        return tuple(self.by_hand)


@dataclass
class World:
    """One fleet at a time; :meth:`restart` begins another one on what the last one has left."""

    caps: Caps = CAPS
    limits: Limits = field(default_factory=Limits)
    offers: int = 3
    #: Of the day, at which it begins.
    hour: int = 18
    #: Dollars per hour that may be bid; None: on demand only.
    spot_usd: float | None = None
    race: bool = False
    #: By label: nodes that say nothing any more.
    mute: set[str] = field(default_factory=set)
    #: By label: nodes that have work.
    busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock = LoopClock(self.hour)
        self.vast = FakeVast([offer(number) for number in range(1, self.offers + 1)], self.clock, deposit=10_000)
        self.server = VastServer(self.vast)
        self.shelf, self.door = Shelf(), MemoryDoor()
        self._numbers = itertools.count(1)
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    async def start(self) -> Fleet:
        client = connect(VastClient(KEY, "http://vast.test", clock=self.clock), self.server)
        kind = replace(KIND, node=replace(GPU_4090, spot_usd_per_hour=self.spot_usd, race=self.race))
        self.provider = VastProvider(client, {TYPE: kind, OTHER: OTHER_KIND}, clock=self.clock)
        self.fleet = Fleet(
            self.provider,
            MemoryBooks(self.shelf),
            self.door,
            caps=self.caps,
            limits=self.limits,
            prefix=PREFIX,
            now=self.clock.now,
            on_event=lambda name, facts: self.events.append((name, facts)),
        )
        await self.fleet.start()
        return self.fleet

    async def restart(self, after_s: float = 30.0) -> Fleet:
        """The head is gone, whatever it was at; another one comes."""
        await self.fleet.close()
        await asyncio.sleep(after_s)
        return await self.start()

    async def passes(self, count: int = 1) -> None:
        """Each with its pause after it."""
        for _ in range(count):
            self.speak()
            await self.fleet.reconcile()
            await asyncio.sleep(self.limits.pass_s)

    async def until_works(self, count: int, most: int = 200) -> list[Node]:
        for _ in range(most):
            await self.passes()
            if len(works := [each for each in self.fleet.nodes() if each.state and each.state.works]) >= count:
                return works
        raise AssertionError(f"{self.fleet.nodes()}")

    def speak(self) -> None:
        """What the nodes report that run."""
        now = self.clock.monotonic()
        for contract in self.vast.alive:
            if contract.label not in self.mute and contract.state(now)[0] == "running":
                self.fleet.hear(report := self._report(contract, now))
                if report.state is State.IDLE:
                    # The head knows whether it has work.
                    state = State.BUSY if contract.label in self.busy else State.IDLE
                    self.fleet.hear(Report(label=contract.label, at=report.at, state=state, by_node=False))

    def _report(self, contract: Contract, now: float) -> Report:
        left = contract.age(now) - contract.scenario.ready_s
        state = State.IDLE
        passed = 0.0
        for step, seconds in STEPS:
            if left < passed + seconds:
                state = step
                break
            passed += seconds
        if state is not State.INSTALLING:
            contract.bytes_down = WEIGHT_BYTES
        return Report(label=contract.label, at=self.clock.now(), state=state, down_bytes=contract.bytes_down)

    def wanted(self) -> list[Node]:
        by_hand = {each.id for each in self.door.by_hand}
        return [each for each in self.fleet.nodes() if not each.dismissed and each.id not in by_hand]

    def want(self, count: int) -> list[str]:
        """As Ray does: add slots one by one, or dismiss the youngest. The ids of those that there are then."""
        for node in self.wanted()[count:]:
            assert self.fleet.dismiss(node.id)
        while len(self.wanted()) < count and self.fleet.add(f"slot-{next(self._numbers)}", TYPE):
            pass
        return [each.id for each in self.wanted()]

    # ---------------------------------------------------------------- what has to be true

    def contract(self, label: str) -> Contract:
        (found,) = [each for each in self.vast.contracts.values() if each.label == label]
        return found

    def rentals(self) -> Sequence[Rental]:
        return tuple(self.shelf.rentals.values())
