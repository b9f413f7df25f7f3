"""Whatever happens: no cap is exceeded, nothing is left that costs, nobody waits for ever, and the books are true.

Random fleets on virtual time, against the fake's market. ``FLEET_EXAMPLES`` says how many (``make fleet-scenarios``).
"""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.fleet.caps import Caps
from cluster.fleet.limits import Limits
from cluster.fleet.rental import State, Why
from cluster.fleet.report import Report
from cluster.fleet.waiting import Reason, Wait
from tests.fakes.vast import OK, Contract, Scenario, offer
from tests.fakes.vast_server import Fault, too_many
from tests.fakes.virtual_time import run
from tests.fakes.world import IMAGE_BYTES, PREFIX, TYPE, World

EXAMPLES = int(os.environ.get("FLEET_EXAMPLES", "25"))
#: Why a slot may wait although machines are there.
CAPPED = {Reason.NODES_CAP, Reason.PRICE_CAP, Reason.HOUR_CAP, Reason.DAY_CAP}
#: The provider's meter for the GPU stops by itself, at a moment that nobody tells.
STOPS = ("offline", "outbid")
MISRENTED = (Why.WRONG_TERMS, Why.NO_BID)
#: Shorter pauses than a real fleet's, so that an hour shows many of them.
LIMITS = Limits(pause_s=30.0, longest_pause_s=240.0, account_pause_s=60.0, weights_pause_s=300.0, on_demand_s=600.0)

machines = st.builds(
    lambda end, pull, boot, after, price: (
        Scenario(pull_s=pull, boot_s=boot, end=end, after_s=after, pull_bytes=IMAGE_BYTES), price
    ),
    st.sampled_from(["ok"] * 4 + ["stuck_loading", "oci_error", "exits", "offline", "outbid"]),
    st.integers(0, 300),
    st.integers(0, 30),
    st.integers(0, 900),
    st.floats(0.2, 0.9),
)  # fmt: skip
caps = st.builds(
    Caps,
    usd_per_hour=st.just(20.0) | st.floats(0.3, 8),
    usd_per_day=st.just(400.0) | st.floats(0.2, 10),
    usd_per_instance_hour=st.floats(0.3, 1),
    nodes=st.integers(0, 19).map(lambda less: {TYPE: 20 - less}),
)
markets = st.sampled_from([20, 8, 2]).flatmap(lambda size: st.lists(machines, min_size=size, max_size=size))
#: What may go wrong with one request of a kind.
faults = st.tuples(
    st.sampled_from(["search", "rent", "list", "show", "destroy"]),
    st.sampled_from([Fault(), Fault(worked=True), Fault(cut=True, worked=True), Fault(cut=True), too_many()]),
)
additions = st.tuples(st.just("add"), st.integers(0, 20).map(lambda less: 20 - less))
spells = st.tuples(st.just("pass"), st.integers(0, 60).map(lambda less: 60 - less))
steps = st.lists(
    st.one_of(
        additions,
        spells,
        st.tuples(st.just("dismiss"), st.lists(st.integers(0, 19), min_size=1, max_size=8)),
        st.tuples(st.just("crash"), st.floats(0, 15), st.floats(6, 60)),
        st.tuples(st.just("faults"), st.lists(faults, min_size=1, max_size=6)),
        st.tuples(st.just("orphan"), st.integers(1, 3)),
        st.tuples(st.just("dearer"), st.integers(0, 19)),
        st.tuples(st.just("busy"), st.integers(0, 3)),
        st.tuples(st.just("trap"), st.booleans()),
        st.tuples(st.just("gate"), st.booleans()),
        st.tuples(st.just("fault"), st.integers(0, 19), st.sampled_from(["weights: 403", "no CUDA"])),
    ),
    min_size=3,
    max_size=14,
)
scripts = st.builds(lambda first, spell, rest: [first, spell, *rest], additions, spells, steps)


@dataclass
class Watch:
    """Looks at the fake, which knows the truth, and never at the fleet."""

    world: World
    #: Passes that an orphan has lived through, by contract.
    lived: Counter[int]
    planted: set[int]
    #: What had been paid when the day began.
    midnight_usd: float = 0.0
    #: Contracts whose end was not heard of at once: the head was gone, or answers were lost.
    unheard: set[int] = field(default_factory=set)
    lossy: bool = False

    def paid(self) -> float:
        now = self.world.clock.monotonic()
        mine = [each for number, each in self.world.vast.contracts.items() if number not in self.planted]
        return sum(sum(each.bill(now).values()) for each in mine)

    def usd_per_hour(self, contract: Contract) -> float:
        """Of one that became dearer between the look at the market and the rent, what was agreed: it goes at once."""
        rental = self.world.shelf.rentals[contract.label]
        if rental.why in MISRENTED:
            return 0.0
        usd = contract.dph_base + contract.body["disk"] * contract.offer["storage_cost"] / 730
        return min(usd, rental.terms.usd_per_hour) if rental.state is State.RENTING else usd

    def look(self) -> None:
        world = self.world
        mine = [each for each in world.vast.alive if each.id not in self.planted]
        hourly = [self.usd_per_hour(each) for each in mine]
        assert sum(hourly) <= world.caps.usd_per_hour * (1 + 1e-6)
        assert max(hourly, default=0.0) <= world.caps.usd_per_instance_hour * (1 + 1e-6)
        assert len(mine) <= world.caps.nodes[TYPE]
        assert self.paid() - self.midnight_usd <= world.caps.usd_per_day + 1e-6
        slots = Counter(world.shelf.rentals[each.label].slot_id for each in mine)
        assert max(slots.values(), default=0) <= 1 + world.race, "too many machines for one slot"
        assert world.vast.violations == []

    def slots(self) -> None:
        assert len(self.world.wanted()) <= self.world.caps.nodes[TYPE]

    def after_pass(self, begun: float, *, faulty: bool) -> None:
        """No machine has outlived two passes that saw it without being in the books as something to pay."""
        world = self.world
        known = {each.instance for each in world.rentals() if each.state is not State.ENDED}
        renting = {each.label for each in world.rentals() if each.state is State.RENTING}
        for contract in world.vast.alive:
            if str(contract.id) in known or contract.label in renting:
                self.lived.pop(contract.id, None)
            elif not faulty and begun - contract.begun >= world.vast.list_omits_s:
                self.lived[contract.id] += 1
                assert self.lived[contract.id] < 2


def plant(world: World, number: int) -> int:
    """Somebody has rented with our label, and nobody knows of it."""
    world.vast.offers.append(offer(number))
    body = {
        "client_id": "me", "image": "x", "disk": 33, "label": f"{PREFIX}-stray-{number}", "runtype": "args", "env": {},
    }  # fmt: skip
    return int(world.vast.rent(number, body)["new_contract"])


async def scenario(
    fleet_caps: Caps,
    market: Sequence[tuple[Scenario, float]],
    omits_s: int,
    hour: int,
    spot_usd: float | None,
    race: bool,
    script: Sequence[Any],
) -> None:
    world = World(caps=fleet_caps, limits=LIMITS, offers=0, hour=hour, spot_usd=spot_usd, race=race)
    world.vast.list_omits_s = omits_s
    for number, (plan, price) in enumerate(market, 1):
        world.vast.offers.append(
            offer(number, dph_base=price, min_bid=price / 2, inet_down_cost=0.0 if race else 0.005)
        )
        world.vast.scenarios[number + 1000] = plan
    watch = Watch(world, Counter(), set())
    strays = 5000

    async def midnight() -> None:
        await asyncio.sleep((datetime(2026, 1, 2, tzinfo=UTC) - world.clock.now()).total_seconds())
        watch.midnight_usd = watch.paid()

    async def looks() -> None:
        while True:
            watch.look()
            await asyncio.sleep(1)

    async def passes(count: int) -> None:
        for _ in range(count):
            faulty = any(world.server._faults.values())
            begun = world.clock.monotonic()
            await world.passes()
            watch.after_pass(begun, faulty=faulty)
            if looking.done():
                looking.result()

    await world.start()
    looking = asyncio.create_task(looks())
    turning = asyncio.create_task(midnight())
    for name, *what in script:
        match name, what:
            case "add", [count]:
                world.want(len(world.wanted()) + count)
                watch.slots()
            case "dismiss", [some]:
                for which in some:
                    if nodes := world.fleet.nodes():
                        world.fleet.dismiss(nodes[which % len(nodes)].id)
            case "pass", [count]:
                await passes(count)
            case "crash", [after_s, away_s]:
                world.speak()
                before = {each.id for each in world.vast.alive}
                passing = asyncio.create_task(world.fleet.reconcile())
                await asyncio.wait([passing], timeout=after_s)
                passing.cancel()
                await asyncio.gather(passing, return_exceptions=True)
                # Nobody is left to write it down.
                watch.unheard |= before - {each.id for each in world.vast.alive}
                await world.restart(away_s)
            case "faults", [some]:
                for endpoint, fault in some:
                    world.server.fail(endpoint, fault)
                    watch.lossy |= endpoint == "destroy" and fault.worked
            case "orphan", [count]:
                for _ in range(count):
                    strays += 1
                    watch.planted.add(plant(world, strays))
            case "dearer", [which]:
                # After the fleet has looked at the market.
                for name in ("dph_base", "min_bid"):
                    world.vast.offers[which % len(market)][name] += 0.05
            case "gate", [closed]:
                world.fleet.gate(TYPE, Wait(Reason.NO_WEIGHTS) if closed else None)
            case "fault", [which, said]:
                if world.vast.alive:
                    label = world.vast.alive[which % len(world.vast.alive)].label
                    world.mute.add(label)
                    world.fleet.hear(Report(label=label, at=world.clock.now(), state=State.WEIGHTS, fault=said))
            case "trap", [overlooked]:
                world.vast.overlooks_bids = overlooked
            case "busy", [nth]:
                world.busy = {each.label for number, each in enumerate(world.vast.alive) if number % 4 == nth}
    await quiet(world, watch, passes)
    looking.cancel()
    turning.cancel()


async def quiet(world: World, watch: Watch, passes: Any) -> None:
    """Nothing goes wrong any more."""
    world.server._faults.clear()
    world.busy, world.vast.overlooks_bids = set(), False
    world.fleet.gate(TYPE, None)
    for number in range(8001, 8041):
        world.vast.offers.append(offer(number, dph_base=0.25))
    for machine in list(world.vast.scenarios):
        if not any(each.offer["machine_id"] == machine for each in world.vast.alive):
            world.vast.scenarios[machine] = OK
    for _ in range(400):
        # Those whose node is lost are replaced by others, as Ray does.
        world.want(5)
        await passes(1)
        if all(_settled(each) for each in world.fleet.nodes()):
            break
    else:
        raise AssertionError(f"a slot is stuck: {world.fleet.nodes()}")
    world.want(0)
    await passes(15)
    assert world.vast.alive == []
    assert world.fleet.nodes() == []
    assert {each.state for each in world.rentals()} <= {State.ENDED}
    for contract in world.vast.contracts.values():
        compare(world, contract, exact=not watch.lossy and contract.id not in watch.unheard)
    # Whoever could come in is shut out.
    assert {f"key-of-{label}" for label in world.door.admitted} <= set(world.door.revoked)


def _settled(node: Any) -> bool:
    return (node.state is not None and node.state.works) or (node.waiting is not None and node.waiting.reason in CAPPED)


def compare(world: World, contract: Contract, *, exact: bool) -> None:
    """The ledger with the bill, of GPU and storage: within a second of its price."""
    now = world.clock.monotonic()
    bill = contract.bill(now)
    paid, booked = bill["gpu"] + bill["storage"], world.shelf.usd(contract.label, bandwidth=False)
    per_s = (contract.dph_base + contract.body["disk"] * contract.offer["storage_cost"] / 730) / 3600
    assert booked >= paid - per_s, "the bill holds what the books do not"
    rental = world.shelf.rentals[contract.label]
    if rental.why in MISRENTED:
        # From when on it cost is not known; it was not before it was asked for.
        assert booked <= paid + per_s * world.limits.rent_s
        return
    stopped = contract.scenario.end in STOPS and contract.age(now) > contract.scenario.ends_s
    if stopped or contract.never_started:
        # Until the next list. Of a bid that was too low nobody says that it has never run.
        assert booked <= paid + per_s * 120
        return
    assert booked <= paid + per_s * (1 if exact else 120), f"the books hold what the bill does not: {rental}"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    caps,
    markets,
    st.integers(0, 45),
    st.sampled_from([18, 23]),
    st.none() | st.floats(0.1, 0.6),
    st.booleans(),
    scripts,
)
def test_random_fleets(
    fleet_caps: Caps,
    market: list[tuple[Scenario, float]],
    omits_s: int,
    hour: int,
    spot_usd: float | None,
    race: bool,
    script: list[Any],
) -> None:
    with structlog.testing.capture_logs():
        run(scenario(fleet_caps, market, omits_s, hour, spot_usd, race, script))
