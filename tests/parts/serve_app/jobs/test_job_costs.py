"""What jobs have cost, of what machines have: nothing is lost and nothing is charged twice."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOTS = ("slot-1", "slot-2", "slot-3", "slot-4")
JOBS = ("job-1", "job-2", "job-3", "job-4", "job-5", "job-6")
#: A node that joined by hand: nobody has rented it.
GUEST = "guest"


@dataclass(frozen=True)
class Rented:
    slot: str
    ended: bool
    #: Dollars of each stretch.
    costs: Sequence[float]
    #: False: it was tried in vain, or lost a race.
    worked: bool = True


@dataclass(frozen=True)
class Ran:
    job: str
    node: str
    #: None: it still runs.
    busy_s: float | None


@dataclass(frozen=True)
class Fleet:
    rentals: Sequence[Rented]
    runs: Sequence[Ran]
    #: By job, whether it has ended; None: its row is gone.
    ended: Mapping[str, bool | None] = field(default_factory=dict)


SECONDS = st.one_of(st.just(0.0), st.floats(0.001, 1e5))
FLEETS = st.builds(
    Fleet,
    st.lists(st.builds(Rented, st.sampled_from((*SLOTS, "")), st.sampled_from([True, True, True, False]),
                       st.lists(st.floats(0, 100), max_size=3), st.booleans()), max_size=8),
    st.lists(st.builds(Ran, st.sampled_from(JOBS), st.sampled_from((*SLOTS, GUEST)),
                       st.one_of(SECONDS, SECONDS, SECONDS, st.none())), max_size=14),
    st.fixed_dictionaries({job: st.sampled_from([True, True, None, False]) for job in JOBS}),
)  # fmt: skip


def settled(fleet: Fleet) -> Fleet:
    """The same once all is over."""
    return Fleet(
        [replace(rental, ended=True) for rental in fleet.rentals],
        [replace(run, busy_s=run.busy_s or 0.0) for run in fleet.runs],
        {job: ended for job, ended in fleet.ended.items() if ended is not False},
    )


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as connection:
        yield connection


def fill(db: psycopg.Connection, fleet: Fleet) -> None:
    for number, rental in enumerate(fleet.rentals):
        end = NOW if rental.ended else None
        db.execute(
            "INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, why, stretch_at,"
            " ended_at, worked_at) VALUES (%s, %s, 'gpu', %s, %s, %s, '', '', 'dismissed', %s, %s, %s)",
            (str(number), rental.slot, "ended" if end else "busy", NOW, NOW, NOW, end, NOW if rental.worked else None),
        )
        for stretch, usd in enumerate(rental.costs):
            db.execute(
                "INSERT INTO node_costs VALUES (%s, %s, %s, 'gpu', 'busy', %s, %s, %s)",
                (str(number), NOW + timedelta(stretch), NOW + timedelta(stretch + 1), usd / 2, usd / 4, usd / 4),
            )
    for attempt, run in enumerate(fleet.runs):
        end = None if run.busy_s is None else NOW
        how = None if run.busy_s is None else "failed"
        db.execute(
            "INSERT INTO runs VALUES (%s, %s, %s, 'ltx2', %s, 1, %s, %s, %s)",
            (run.job, attempt, NOW, run.node, end, run.busy_s, how),
        )
    for job, ended in fleet.ended.items():
        if ended is not None:
            db.execute(
                "INSERT INTO jobs (id, model, status, completed_at) VALUES (%s, 'ltx2', %s, %s)",
                (job, "cancelled" if ended else "queued", NOW if ended else None),
            )


@dataclass(frozen=True)
class Bill:
    jobs: Mapping[str, float]
    unattributed: float
    #: What is in neither yet.
    open: float


def expected(fleet: Fleet) -> Bill:
    """The same by hand, node by node."""
    usd: dict[str, float] = defaultdict(float)
    unsettled: set[str] = set()
    for number, rental in enumerate(fleet.rentals):
        node = rental.slot if rental.worked else str(number)
        usd[node] += sum(rental.costs)
        unsettled |= set() if rental.ended else {node}
    unsettled |= {run.node for run in fleet.runs if run.busy_s is None}
    shares: dict[str, dict[str, float]] = {node: defaultdict(float) for node in usd}
    for run in fleet.runs:
        if run.node in usd:
            shares[run.node][run.job] += run.busy_s or 0
    bill: dict[str, float] = defaultdict(float)
    waiting: set[str] = {job for job, ended in fleet.ended.items() if ended is False}
    unattributed = 0.0
    for node, jobs in shares.items():
        busy = sum(jobs.values())
        if node in unsettled:
            waiting |= jobs.keys()
        elif not busy:
            unattributed += usd[node]
        for job, seconds in jobs.items():
            bill[job] += usd[node] * seconds / busy if busy else 0
    known = {job: cost for job, cost in bill.items() if job not in waiting}
    rest = sum(usd[node] for node in unsettled if node in usd and not sum(shares[node].values()))
    rest += sum(cost for job, cost in bill.items() if job in waiting)
    return Bill(known, unattributed, rest)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(FLEETS | FLEETS.map(settled))
def test_every_cent_is_somebody_s_once(db: psycopg.Connection, fleet: Fleet) -> None:
    try:
        fill(db, fleet)
        costs = dict(db.execute("SELECT job_id, cost_usd FROM job_costs").fetchall())
        totals = db.execute("SELECT name, label, value FROM fleet_totals").fetchall()
        one_by_one = {
            job: row[0]
            for job in JOBS
            if (row := db.execute("SELECT cost_usd FROM job_costs WHERE job_id = %s", (job,)).fetchone())
        }
    finally:
        db.rollback()
    bill = expected(fleet)
    assert costs == close(bill.jobs)
    assert one_by_one == costs

    def total(name: str) -> float:
        return sum(value for found, _, value in totals if found == name)

    everything = sum(sum(rental.costs) for rental in fleet.rentals)
    assert total("node_cost_usd") == close(everything)
    assert total("job_cost_usd") == close(sum(costs.values()))
    assert total("unattributed_usd") == close(bill.unattributed)
    assert total("job_cost_usd") + total("unattributed_usd") + bill.open == close(everything)


def costs_of(db: psycopg.Connection, fleet: Fleet) -> Mapping[str, float]:
    fill(db, fleet)
    return dict(db.execute("SELECT job_id, cost_usd FROM job_costs").fetchall())


def test_a_node_s_whole_cost_is_shared_by_time(db: psycopg.Connection) -> None:
    """Its start and its idling: that is what its jobs needed. The machine that failed before it came is nobody's."""
    fleet = Fleet(
        [
            Rented("slot-1", True, [0.5], worked=False),
            Rented("slot-1", True, [3.0, 1.0]),
            Rented("slot-2", True, [1.0]),
        ],
        [Ran("job-1", "slot-1", 30), Ran("job-2", "slot-1", 10)],
    )
    assert costs_of(db, fleet) == {"job-1": 3.0, "job-2": 1.0}


def test_a_job_on_two_nodes_waits_for_both_bills(db: psycopg.Connection) -> None:
    runs = [Ran("job-1", "slot-1", 30), Ran("job-1", "slot-2", 10), Ran("job-2", "slot-1", 30)]
    fleet = Fleet([Rented("slot-1", True, [1.0]), Rented("slot-2", False, [1.0])], runs)
    assert costs_of(db, fleet) == {"job-2": 0.5}
    db.execute("UPDATE rentals SET state = 'ended', ended_at = now()")
    found = db.execute("SELECT job_id, cost_usd FROM job_costs ORDER BY job_id").fetchall()
    assert found == [("job-1", 1.5), ("job-2", 0.5)]


def test_what_nobody_rented_costs_nothing_that_is_known(db: psycopg.Connection) -> None:
    fleet = Fleet(
        [Rented("slot-1", True, [1.0])], [Ran("job-1", GUEST, 5), Ran("job-2", GUEST, 5), Ran("job-2", "slot-1", 5)]
    )
    assert costs_of(db, fleet) == {"job-2": 1.0}


def test_the_cost_of_one_job_is_found_without_adding_up_all(db: psycopg.Connection) -> None:
    """It is asked for with each look at a job."""
    db.execute(
        "INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, why, stretch_at,"
        " ended_at, worked_at) SELECT n, n, 'gpu', 'ended', now(), now(), '', '', 'x', now(), now(), now()"
        " FROM generate_series(1, 3000) n"
    )
    db.execute(
        "INSERT INTO node_costs SELECT n, now(), now() + interval '1 s', 'gpu', 'busy', 1"
        " FROM generate_series(1, 3000) n"
    )
    db.execute(
        "INSERT INTO runs SELECT n, 1, now(), 'ltx2', 1 + n / 10, 1, now(), 1, 'completed'"
        " FROM generate_series(1, 20000) n"
    )
    for relation in ("rentals", "node_costs", "runs", "jobs"):
        db.execute(f"ANALYZE {relation}")
    ids = [str(n) for n in range(100, 110)]
    query = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM job_costs WHERE job_id = ANY(%s)"
    (row,) = db.execute(query, (ids,)).fetchall()
    plan = row[0][0]["Plan"]
    assert plan["Actual Rows"] == 10
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 400
