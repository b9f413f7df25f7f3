"""A model that does not start: its jobs say why, Serve is left in peace, and tried again with growing pauses."""

from collections.abc import Mapping

import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.conditions import EVERY_MODEL, Condition, Conditions
from serve_app.jobs.outlooks import Outlook
from serve_app.jobs.readiness import ModelHealth, Readiness
from tests.parts.serve_app.jobs.samples import execute, fetch

BROKEN = Condition("model_unavailable", "ltx2 cannot start: FileNotFoundError: /weights")
CROWDED = Condition("no_node_fits", "No node takes a replica of ltx2: needs 2 CPUs, 1 free.")
OK, IDLE = ModelHealth(True, None), ModelHealth(False, None)
FAILS, WAITS = ModelHealth(False, BROKEN), ModelHealth(False, CROWDED)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Remembered(Conditions):
    """Written down in memory: an hour of looks each second is no work for a database."""

    def __init__(self) -> None:
        self._known: dict[str, Condition] = {}

    async def note(self, subject: str, condition: Condition) -> None:
        self._known[subject] = condition

    async def lift(self, subject: str) -> None:
        self._known.pop(subject, None)

    async def current(self) -> Mapping[str, Condition]:
        return self._known


class Watch:
    """A readiness of one model, and what it wrote down."""

    def __init__(self, conditions: Conditions) -> None:
        self.clock = Clock()
        self.conditions = conditions
        self.readiness = Readiness(self.conditions, self.clock)

    async def sees(
        self, health: ModelHealth, after_s: float = 0, storage: str | None = None, outlook: Outlook | None = None
    ) -> int:
        """How many tasks may be in flight of 7 that are wanted."""
        self.clock.now += after_s
        outlooks = {} if outlook is None else {"ltx2": outlook}
        self.closed = await self.readiness.look({"ltx2": health}, storage, outlooks)
        return self.readiness.window("ltx2", 7)

    async def written(self) -> Mapping[str, Condition]:
        return await self.conditions.current()


@pytest.fixture
def watch(engine: AsyncEngine) -> Watch:
    return Watch(Conditions(engine))


async def test_a_model_that_works_is_let_be(watch: Watch) -> None:
    assert [await watch.sees(health) for health in (IDLE, OK, IDLE)] == [7, 7, 7]
    assert await watch.written() == {}


async def test_one_that_does_not_start_is_closed_at_its_first_failure(watch: Watch) -> None:
    assert await watch.sees(FAILS) == 0
    assert watch.closed == {"ltx2"}
    assert await watch.written() == {"ltx2": BROKEN}
    assert await watch.sees(FAILS, 2) == 0
    # Once.
    assert watch.closed == set()


async def test_serve_is_tried_again_once_it_has_forgotten_with_growing_pauses() -> None:
    """Before, it would not try; and each try on a rented GPU is paid for."""
    watch = Watch(Remembered())
    pauses = []
    await watch.sees(FAILS)
    for _ in range(7):
        began = watch.clock.now
        # As long as Serve shows the failure, another call would change nothing.
        assert await watch.sees(FAILS, 30) == 0
        while await watch.sees(IDLE, 1) == 0:
            # What the jobs are told does not change meanwhile.
            assert (await watch.written())["ltx2"] == BROKEN
        assert watch.readiness.window("ltx2", 7) == 1
        pauses.append(round(watch.clock.now - began))
        assert await watch.sees(ModelHealth(False, None), 1) == 1
        assert await watch.sees(FAILS, 1) == 0
        assert watch.closed == {"ltx2"}
    assert pauses == [60, 120, 240, 480, 900, 900, 900]


async def test_on_rented_machines_each_try_may_cost_one_so_it_waits_an_hour() -> None:
    watch = Watch(Remembered())
    rented = Outlook(start_s=300)
    for _ in range(3):
        assert await watch.sees(FAILS, outlook=rented) == 0
        assert await watch.sees(IDLE, 3599, outlook=rented) == 0
        assert (await watch.written())["ltx2"] == BROKEN
        assert await watch.sees(IDLE, 1, outlook=rented) == 1


NO_WEIGHTS = Outlook(start_s=300, code="weights_unavailable", message="ltx2: its weights are not mirrored.")


async def test_no_call_waits_for_a_machine_that_is_not_rented_for_want_of_weights(watch: Watch) -> None:
    assert await watch.sees(IDLE, outlook=NO_WEIGHTS) == 0
    # What was handed over before is taken back, once.
    assert watch.closed == {"ltx2"}
    assert await watch.sees(IDLE, 2, outlook=NO_WEIGHTS) == 0
    assert watch.closed == set()
    assert await watch.sees(IDLE, 2, outlook=Outlook(start_s=300)) == 7


@pytest.mark.parametrize("code", ["cap_reached", "no_machine", "no_credit", "of a newer launcher"])
async def test_what_passes_by_itself_closes_nothing(watch: Watch, code: str) -> None:
    """Nobody would see any more that a machine is wanted."""
    assert await watch.sees(IDLE, outlook=Outlook(start_s=300, code=code, message="x")) == 7


async def test_replicas_that_run_have_their_weights(watch: Watch) -> None:
    assert await watch.sees(OK, outlook=NO_WEIGHTS) == 7


async def test_a_model_that_starts_after_all_is_open_again(watch: Watch) -> None:
    await watch.sees(FAILS)
    await watch.sees(IDLE, 100)
    assert await watch.sees(OK, 1) == 7
    assert await watch.written() == {}
    # What was is forgotten.
    await watch.sees(FAILS, 1000)
    assert await watch.sees(IDLE, 61) == 1


async def test_a_replica_without_a_node_is_still_wanted(watch: Watch) -> None:
    """Nodes are rented for the calls that wait."""
    assert await watch.sees(WAITS) == 7
    assert await watch.written() == {"ltx2": CROWDED}
    assert await watch.sees(OK) == 7
    assert await watch.written() == {}


async def test_a_store_that_refuses_is_written_down_for_all(watch: Watch) -> None:
    await watch.sees(OK, storage="The disk is full.")
    expected = Condition("storage_unavailable", "The object store refuses: The disk is full.")
    assert await watch.written() == {EVERY_MODEL: expected}
    await watch.sees(OK)
    assert await watch.written() == {}


async def test_each_change_is_one_line_in_the_log(watch: Watch) -> None:
    with structlog.testing.capture_logs() as lines:
        for health in (OK, FAILS, FAILS, FAILS, OK, OK):
            await watch.sees(health, 2)
    assert [(line["event"], line["code"]) for line in lines] == [
        ("condition", "model_unavailable"),
        ("condition_lifted", "model_unavailable"),
    ]
    assert lines[0]["reason"] == BROKEN.message


async def test_what_still_holds_is_written_again_before_nobody_believes_it(watch: Watch, engine: AsyncEngine) -> None:
    await watch.sees(FAILS)
    await execute(engine, "UPDATE conditions SET seen_at = now() - interval '100 seconds'")
    await watch.sees(FAILS, 25)
    (found,) = await fetch(engine, "SELECT now() - seen_at < interval '50 seconds' AS fresh FROM conditions")
    assert found["fresh"]
