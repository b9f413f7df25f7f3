"""Which node worked on which attempt: kept by the database, on whatever way the attempt ends."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Lease, Started, Verdict
from serve_app.jobs import store as store_module
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import (
    execute,
    failure,
    fetch,
    jobs_of,
    lease_of,
    outcome,
    silence,
    skip_back_off,
    stopped,
    waiting,
)

End = Callable[[JobStore, AsyncEngine, Lease], Awaitable[Any]]


async def working(store: JobStore, engine: AsyncEngine, node: str = "slot-1", seconds: float = 100) -> Lease:
    """The lease of a job that ``node`` has worked on for so long."""
    await waiting(store)
    return await started(store, engine, node, seconds)


async def started(store: JobStore, engine: AsyncEngine, node: str, seconds: float) -> Lease:
    (job,) = jobs_of(await store.claim_to_run("ltx2", 1000))
    assert await store.start(Started(lease=lease_of(job), node=node)) is Verdict.GO_ON
    await execute(engine, "UPDATE runs SET started_at = now() - make_interval(secs => :s)", s=seconds)
    return lease_of(job)


async def runs(engine: AsyncEngine) -> Sequence[Mapping[str, Any]]:
    return await fetch(engine, "SELECT * FROM runs ORDER BY job_id, attempt")


async def silenced(store: JobStore, engine: AsyncEngine, lease: Lease) -> None:
    await silence(engine, lease.job_id)
    assert await store.expire_leases() == 1


async def cancelled(store: JobStore, engine: AsyncEngine, lease: Lease) -> None:
    await store.cancel(lease.job_id)
    await store.stopped(stopped(lease, run=40.0))


async def cancelled_and_lost(store: JobStore, engine: AsyncEngine, lease: Lease) -> None:
    await store.cancel(lease.job_id)
    await silenced(store, engine, lease)


WAYS: Mapping[str, tuple[End, str, float]] = {
    "completed": (lambda store, _, lease: store.complete(outcome(lease, run=40.0), "k"), "completed", 40),
    "failed": (lambda store, _, lease: store.fail(failure(lease, transient=False, run=40.0)), "failed", 40),
    "failed before its turn": (
        lambda store, _, lease: store.fail(failure(lease, transient=False, prepare=90.0)),
        "failed",
        0,
    ),
    "failed without a word": (lambda store, _, lease: store.fail(failure(lease, transient=False)), "failed", 100),
    "retried": (lambda store, _, lease: store.fail(failure(lease, run=40.0)), "retried", 40),
    "postponed": (lambda store, _, lease: store.postpone(lease, {"run": 40.0}), "retried", 40),
    "lost": (silenced, "retried", 100),
    "cancelled": (cancelled, "cancelled", 40),
    "cancelled and lost": (cancelled_and_lost, "cancelled", 100),
    "by a worker outside": (lambda store, _, lease: store.end_externally(lease.job_id, error="x"), "failed", 100),
    "row deleted": (lambda _, engine, lease: execute(engine, "DELETE FROM jobs"), "cancelled", 100),
    # It can't have had the GPU for longer than it had the job.
    "a liar": (lambda store, _, lease: store.complete(outcome(lease, run=1e300), "k"), "completed", 100),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_run_ends_with_its_attempt(store: JobStore, engine: AsyncEngine, way: str) -> None:
    end, how, busy_s = WAYS[way]
    lease = await working(store, engine)
    (run,) = await runs(engine)
    assert (run["job_id"], run["attempt"], run["node"], run["model"]) == (lease.job_id, 1, "slot-1", "ltx2")
    assert (run["ended_at"], run["busy_s"], run["outcome"]) == (None, None, None)
    await end(store, engine, lease)
    (run,) = await runs(engine)
    assert run["outcome"] == how
    assert run["busy_s"] == pytest.approx(busy_s, abs=60 if busy_s == 100 else 1e-9)
    assert run["busy_s"] >= busy_s
    assert run["ended_at"] >= run["started_at"]


async def test_each_attempt_is_a_run_with_its_own_seconds(store: JobStore, engine: AsyncEngine) -> None:
    lease = await working(store, engine, "slot-1")
    await store.fail(failure(lease, run=40.0))
    await skip_back_off(engine)
    again = await started(store, engine, "slot-2", 100)
    await store.fail(failure(again, run=30.0))
    await skip_back_off(engine)
    # Its node has died: nobody says how long it was at it, so it was all the time.
    await silenced(store, engine, await started(store, engine, "slot-1", 50))
    found = [(run["attempt"], run["node"], run["outcome"]) for run in await runs(engine)]
    assert found == [(1, "slot-1", "retried"), (2, "slot-2", "retried"), (3, "slot-1", "failed")]
    first, second, third = [run["busy_s"] for run in await runs(engine)]
    assert (first, second) == (pytest.approx(40), pytest.approx(30))
    assert third >= 50


async def test_a_start_that_is_told_twice_is_one_run(store: JobStore, engine: AsyncEngine) -> None:
    lease = await working(store, engine)
    assert await store.start(Started(lease=lease, node="slot-1")) is Verdict.GO_ON
    assert len(await runs(engine)) == 1


async def test_a_video_that_is_held_has_left_its_node(
    store: JobStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "VERIFY_S", 0.0)
    lease = await working(store, engine)
    await store.hold(outcome(lease, run=40.0))
    (held,) = await runs(engine)
    assert (held["outcome"], held["busy_s"]) == (None, 40)
    assert held["ended_at"] is not None
    # A day later it is given up: it was not at it for a day.
    await silenced(store, engine, lease)
    (run,) = await runs(engine)
    assert (run["outcome"], run["busy_s"], run["ended_at"]) == ("retried", 40, held["ended_at"])


async def test_a_service_on_one_machine_keeps_no_runs(store: JobStore, engine: AsyncEngine) -> None:
    await waiting(store)
    (job,) = jobs_of(await store.claim_to_run("ltx2", 1000))
    await store.start(Started(lease=lease_of(job)))
    await store.complete(outcome(lease_of(job)), "k")
    assert await runs(engine) == []


async def test_runs_outlive_their_jobs(store: JobStore, engine: AsyncEngine) -> None:
    await store.complete(outcome(await working(store, engine)), "k")
    # Its webhook, if any, is none.
    await Retention(engine, None, RetentionPolicy(completed_hours=0)).forget_jobs()  # type: ignore[arg-type]
    assert await fetch(engine, "SELECT id FROM jobs") == []
    assert len(await runs(engine)) == 1
