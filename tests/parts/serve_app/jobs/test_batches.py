"""Questions that are asked together, of a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import psycopg
import pytest
from psycopg import AsyncConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs import batches as batches_module
from serve_app.jobs.accepting import accept
from serve_app.jobs.batches import Batches
from serve_app.jobs.claim import INTAKE_LOCK
from serve_app.jobs.job import Job, NewJob
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import eventually, fetch, new_job


class Halves:
    """Half of each number, as PostgreSQL has it; not of 13, which it cannot divide."""

    def __init__(self) -> None:
        #: What each statement was asked.
        self.said: list[Sequence[int]] = []
        self.connections: set[AsyncConnection] = set()
        #: Statements wait for it.
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int]) -> Sequence[int]:
        self.said.append(numbers)
        self.connections.add(connection)
        await self.go.wait()
        cursor = await connection.execute(
            "SELECT CASE n WHEN 13 THEN n / (n - 13) ELSE n / 2 END"
            " FROM unnest(%s::int[]) WITH ORDINALITY given (n, at) ORDER BY at",
            (list(numbers),),
        )
        return [row[0] for row in await cursor.fetchall()]


@pytest.fixture
def halves() -> Halves:
    return Halves()


@pytest.fixture
async def batches(database_url: str, halves: Halves) -> AsyncIterator[Batches[int, int]]:
    made = Batches(database_url, halves)
    yield made
    halves.go.set()
    await made.aclose()


async def test_a_crowd_costs_few_statements_and_each_gets_its_own_answer(
    batches: Batches[int, int], halves: Halves
) -> None:
    assert await asyncio.gather(*(batches.ask(n) for n in range(0, 400, 2) if n != 13)) == list(range(200))
    assert len(halves.said) <= 2 * (200 / batches_module.MOST + 2)
    assert len(halves.connections) <= batches_module.LANES


async def test_who_comes_while_a_statement_runs_goes_with_the_next(batches: Batches[int, int], halves: Halves) -> None:
    halves.go.clear()
    first = [asyncio.create_task(batches.ask(n)) for n in (2, 4)]
    await _until(lambda: len(halves.said) == 1)
    second = [asyncio.create_task(batches.ask(n)) for n in (6, 8)]
    await _until(lambda: len(halves.said) == batches_module.LANES)
    third = [asyncio.create_task(batches.ask(n)) for n in (10, 12, 14)]
    await asyncio.sleep(0)
    halves.go.set()
    assert await asyncio.gather(*first, *second, *third) == [1, 2, 3, 4, 5, 6, 7]
    assert halves.said == [[2, 4], [6, 8], [10, 12, 14]]


async def test_one_that_cannot_be_answered_spoils_nobody_elses(batches: Batches[int, int]) -> None:
    answers = await asyncio.gather(*(batches.ask(n) for n in (2, 13, 4)), return_exceptions=True)
    assert (answers[0], answers[2]) == (1, 2)
    assert isinstance(answers[1], psycopg.errors.DivisionByZero)
    assert await batches.ask(6) == 3


async def test_who_gives_up_leaves_at_once(batches: Batches[int, int], halves: Halves) -> None:
    halves.go.clear()
    patient, hasty = (asyncio.create_task(batches.ask(n)) for n in (2, 4))
    await _until(lambda: bool(halves.said))
    hasty.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hasty
    halves.go.set()
    assert await patient == 1


async def test_a_connection_that_has_died_is_replaced(
    batches: Batches[int, int], halves: Halves, database_url: str
) -> None:
    assert await batches.ask(2) == 1
    await _end_others(database_url)
    assert await batches.ask(4) == 2
    assert len(halves.connections) == 2


async def test_a_statement_that_hangs_is_given_up(
    batches: Batches[int, int], halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves.go.clear()
    with monkeypatch.context() as patch:
        patch.setattr(batches_module, "HUNG_S", 0.05)
        with pytest.raises(TimeoutError):
            await batches.ask(2)
    halves.go.set()
    assert await batches.ask(4) == 2


async def test_without_a_server_the_error_says_so(halves: Halves) -> None:
    away = Batches("postgresql+psycopg://127.0.0.1:9/none", halves)
    with pytest.raises(psycopg.OperationalError):
        await away.ask(2)


async def test_a_job_whose_acceptance_was_not_heard_is_there_once(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies after the commit and before the answer: it is said once more, under the same id."""
    deaths = 0

    async def accept_and_die(connection: AsyncConnection, arrivals: Sequence[NewJob]) -> Sequence[Job]:
        nonlocal deaths
        accepted = await accept(connection, arrivals)
        if deaths == 0 and arrivals[0].user_id == "bob":
            deaths += 1
            await connection.close()
            raise psycopg.OperationalError("the server closed the connection")
        return accepted

    monkeypatch.setattr("serve_app.jobs.store.accept", accept_and_die)
    store = JobStore(engine)
    await store.submit(new_job("ann"))
    job = await store.submit(new_job("bob"))
    assert (deaths, job is not None) == (1, True)
    assert await store.list(user_id="bob") == [job]
    await store.aclose()


async def test_arrivals_and_a_claim_for_intake_do_not_wait_for_each_other(
    store: JobStore, engine: AsyncEngine, database_url: str
) -> None:
    """Both change several lines: a claim as turns have it, arrivals by name."""
    for user in ("ann", "bob"):
        await store.submit(new_job(user))
    lease = "UPDATE jobs SET lease_token = 'x', lease_expires_at = now() + interval '1 hour' WHERE user_id = %s"
    async with await AsyncConnection.connect(database_url.replace("+psycopg", "", 1)) as claim:
        await claim.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (INTAKE_LOCK,))
        await claim.execute(lease, ("bob",))
        arriving = asyncio.gather(store.submit(new_job("ann")), store.submit(new_job("bob")))
        await eventually(lambda: fetch(engine, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        await claim.execute(lease, ("ann",))
    assert all(await arriving)


async def _end_others(url: str) -> None:
    plain = url.replace("+psycopg", "", 1)
    async with await AsyncConnection.connect(plain, autocommit=True) as db:
        await db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def _until(holds) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for is a call of this loop
            await asyncio.sleep(0)
