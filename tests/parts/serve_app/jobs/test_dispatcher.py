"""Whole jobs through the dispatcher's loops: real PostgreSQL, real intake, real storage, workers in this process."""

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments import run as run_module
from deployments.classes import Deployment, deployments
from deployments.contract import Ability, Failure, Lease, Report, Started, Task, Verdict
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.registry import MODELS
from serve_app.intake.inputs import Intake
from serve_app.jobs import abilities as abilities_module
from serve_app.jobs import dispatcher as dispatcher_module
from serve_app.jobs import ending
from serve_app.jobs import store as store_module
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.conditions import EVERY_MODEL, Condition, Conditions, WaitCode
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.dispatcher import Dispatcher
from serve_app.jobs.job import Job, Status
from serve_app.jobs.orphans import Orphans
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.readiness import Readiness
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.retry import delay_before_retry
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.jobs.windows import Windows
from serve_app.jobs.workers import WorkerDied, WorkerUnreachable
from serve_app.outbound.base import Outbound, OutboundUnavailable
from serve_app.outbound.client import SafeClient
from serve_app.storage import keys, watch
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, reply, stalled
from tests.fakes.media import PICTURE, film, make
from tests.fakes.workers import VIDEO, FakeWorkers, OneProcess, Stop
from tests.parts.serve_app.jobs.samples import eventually, execute, fetch, new_job, row, silence

SECRETS = SigningSecrets("whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0", b"r" * 32)
#: No machine is so busy that one runs out by itself; and yet less than what is waited for.
LEASE_S = 20.0
#: What a dispatcher takes it for: after so long it looks for the first time whether one has run out.
FIRST_LOOK_S = 3.0


class House:
    """A service with its database, storage and workers; dispatchers come and go."""

    def __init__(self, engine: AsyncEngine, database_url: str, folder: Path) -> None:
        self.engine = engine
        self._database_url = database_url
        self._folder = folder
        self.storage = LocalStorage(folder / "media", "http://127.0.0.1:1", b"k" * 32)
        self.store = JobStore(engine, lease_s=LEASE_S)
        self.workers = FakeWorkers(self.storage, {"ltx2": 2})
        self.deployments: Sequence[Deployment] = deployments({})
        self.outbound: Outbound = SafeClient((ip_network("127.0.0.0/8"),))

    def dispatcher(self) -> Dispatcher:
        async def video_url(job: Job) -> str:
            return f"https://v.example/{job.output_key}"

        return Dispatcher(
            database_url=self._database_url,
            store=self.store,
            storage=self.storage,
            intake=Intake(self.storage, self.outbound, self._folder / "intake"),
            workers=self.workers,
            deliveries=Deliveries(self.engine, self.outbound, SECRETS, video_url),
            retention=Retention(self.engine, self.storage, RetentionPolicy()),
            orphans=Orphans(self.engine, self.storage),
            readiness=Readiness(Conditions(self.engine)),
            windows=Windows(self.engine),
            outlooks=Outlooks(self.engine),
            abilities=Abilities(self.engine),
            deployments=self.deployments,
            lease_s=FIRST_LOOK_S,
        )

    @asynccontextmanager
    async def dispatching(self) -> AsyncIterator[Dispatcher]:
        dispatcher = self.dispatcher()
        self.workers.reporter = dispatcher
        loops = asyncio.create_task(dispatcher.run())
        try:
            yield dispatcher
        finally:
            self.workers.reporter = None
            loops.cancel()
            await asyncio.wait({loops})
        assert loops.cancelled(), "a loop ended by itself"

    async def conditions(self) -> Mapping[str, Condition]:
        return await Conditions(self.engine).current()

    async def until(self, job_id: str, condition: Callable[[Job], bool]) -> Job:
        async def met() -> Job | None:
            job = await self.store.get(job_id)
            assert job is not None
            return job if condition(job) else None

        return await eventually(met)

    async def waiting(self, deployment: str) -> str:
        """The id of a job that waits for a GPU of that deployment, and needs no intake."""
        new = new_job(deployment=deployment)
        statement = (
            "INSERT INTO jobs (id, model, assigned, status, inputs) VALUES (:id, :model, :assigned, 'queued', '{}')"
        )
        await execute(self.engine, statement, id=new.id, model=new.model, assigned=new.deployment or None)
        return new.id

    async def until_ended(self, job_id: str) -> Job:
        return await self.until(job_id, lambda job: job.status.terminal)


@pytest.fixture(autouse=True)
def _frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And short waits; how long they are in earnest is tested where they are computed. Leases stay long."""
    monkeypatch.setattr(run_module, "REPORT_INTERVAL_S", 0.05)
    monkeypatch.setattr(run_module, "AGAIN_S", 0.05)
    for name in ("POLL_S", "SWEEP_S", "PAUSE_S"):
        monkeypatch.setattr(dispatcher_module, name, 0.1)
    monkeypatch.setattr(dispatcher_module, "RENEWALS", LEASE_S / 0.1)
    monkeypatch.setattr(store_module, "AGAIN_S", 0.05)
    monkeypatch.setattr(store_module, "MAX_POSTPONED_S", 0.05)

    def shorter(**fault: Any) -> float | None:
        delay = delay_before_retry(**fault)
        return None if delay is None else delay / 20

    monkeypatch.setattr(ending, "delay_before_retry", shorter)


@pytest.fixture
async def house(engine: AsyncEngine, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    house = House(engine, database_url, tmp_path)
    yield house
    await house.workers.kill()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("image") / "a.png", *PICTURE, "-frames:v", "1").read_bytes()


@pytest.fixture
async def source(image: bytes) -> AsyncIterator[HttpSource]:
    async with HttpSource({"/image": reply(200, image), "/hook": reply(200)}) as source:
        yield source


@pytest.fixture
def submit(house: House, source: HttpSource) -> Callable[..., Awaitable[str]]:
    async def submit(**changes: Any) -> str:
        job = await house.store.submit(new_job(**({"sources": {"image": source.url("/image")}} | changes)))
        assert job is not None
        return job.id

    return submit


def once(act: Callable[[Task], Awaitable[None]]) -> Callable[[Task], Awaitable[None]]:
    """``act`` for the first task only."""
    left = [act]

    async def maybe(task: Task) -> None:
        if left:
            await left.pop()(task)

    return maybe


def dying(house: House) -> Callable[[Task], Awaitable[None]]:
    """All workers are gone at once."""

    async def act(_: Task) -> None:
        asyncio.get_running_loop().call_soon(lambda: [work.cancel() for work in house.workers._alive])
        await asyncio.Event().wait()

    return act


def raising(error: Exception) -> Callable[[Task], Awaitable[None]]:
    async def act(_: Task) -> None:
        raise error

    return act


async def test_a_job_from_submission_to_video_and_webhook(house: House, source: HttpSource, submit: Any) -> None:
    async with house.dispatching():
        job_id = await submit(webhook_url=source.url("/hook"), request_id="req-1")
        job = await house.until_ended(job_id)
        await eventually(lambda: fetch(house.engine, "SELECT 1 FROM deliveries WHERE delivered_at IS NOT NULL"))
    assert (job.status, job.attempt, job.progress, job.faults) == (Status.COMPLETED, 1, 100, 0)
    assert job.output_key == keys.output(job.folder, 1)
    assert (await house.storage.stat(job.output_key)).size == len(VIDEO)
    (task,) = house.workers.tasks
    assert (task.lease.attempt, task.lease.request_id, task.params) == (1, "req-1", {"prompt": "hi"})
    assert task.inputs["image"].content_type == "image/png"
    hook = next(seen for seen in source.seen if seen.target == "/hook")
    assert job.output_key.encode() in hook.body


async def test_a_job_without_a_picture_runs_with_no_inputs(house: House, submit: Any) -> None:
    async with house.dispatching():
        job = await house.until_ended(await submit(sources={}))
    assert (job.status, job.inputs) == (Status.COMPLETED, {})
    assert [task.inputs for task in house.workers.tasks] == [{}]


async def test_many_jobs_each_run_once(house: House, submit: Any) -> None:
    # A busy machine may renew late; who has lost a lease runs again, and rightly so.
    house.store = JobStore(house.engine, lease_s=60)
    async with house.dispatching(), house.dispatching():
        ids = [await submit(user_id=user) for user in ("ann", "bob", None) for _ in range(4)]
        jobs = [await house.until_ended(job_id) for job_id in ids]
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert house.workers.runs == dict.fromkeys(ids, 1)


async def test_a_run_that_its_client_gives_too_little_time_is_not_tried_again(house: House, submit: Any) -> None:
    house.workers.compute = Stop()
    async with house.dispatching():
        job = await house.until(await submit(timeout_s=0.2), lambda job: job.status.terminal)
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "timed_out", 1)
    assert job.error_message == "The run took longer than 0.2 s."
    assert [task.timeout_s for task in house.workers.tasks] == [0.2]


async def test_a_broken_input_never_reaches_a_worker(house: House, source: HttpSource, submit: Any) -> None:
    source.routes["/text"] = reply(200, b"this is no picture")
    async with house.dispatching():
        gone = await submit(sources={"image": source.url("/missing")})
        odd = await submit(sources={"image": source.url("/text")})
        assert (await house.until_ended(gone)).error_code == "source_rejected"
        assert (await house.until_ended(odd)).error_code in ("unsupported_media", "invalid_media")
    assert house.workers.tasks == []


async def test_a_source_that_is_down_for_a_moment_is_tried_again(
    house: House, source: HttpSource, submit: Any, image: bytes
) -> None:
    answers = iter([reply(503), reply(200, image)])

    async def stumble(seen: Any, writer: Any) -> None:
        await next(answers)(seen, writer)

    source.routes["/slow"] = stumble
    async with house.dispatching():
        job = await house.until_ended(await submit(sources={"image": source.url("/slow")}))
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 1)


async def test_what_is_our_fault_in_intake_is_no_attempt(house: House, submit: Any) -> None:
    """Our disk is full once, and there is no way out once."""
    faults = [OSError(errno.ENOSPC, "full"), OutboundUnavailable("busy")]

    class Stumbling(SafeClient):
        async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
            if faults:
                raise faults.pop()
            return await super().download(url, path, max_bytes, owner=owner)

    house.outbound = Stumbling((ip_network("127.0.0.0/8"),))
    async with house.dispatching():
        job = await house.until_ended(await submit())
    assert (job.status, job.attempt, job.faults, faults) == (Status.COMPLETED, 1, 0, [])


async def test_a_worker_that_dies_costs_one_attempt(house: House, submit: Any) -> None:
    house.workers.compute = once(dying(house))
    generate = house.workers.generate

    async def as_serve_says_it(task: Task) -> None:
        try:
            await generate(task)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            raise WorkerDied("the actor died") from None

    house.workers.generate = as_serve_says_it
    async with house.dispatching():
        job = await house.until_ended(await submit())
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 2, 1)
    assert [task.lease.attempt for task in house.workers.tasks] == [1, 2]
    assert job.output_key.endswith("/2/output.mp4")


async def test_a_worker_that_dies_before_the_start_costs_none(house: House, submit: Any) -> None:
    house.workers.before_start = once(raising(WorkerDied("the actor died")))
    async with house.dispatching():
        job = await house.until_ended(await submit())
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 0)
    assert len(house.workers.tasks) == 2


async def test_a_worker_that_cannot_be_reached_goes_on(house: House, submit: Any) -> None:
    """The call breaks while the model runs; what the worker reports still counts, and nobody else gets the job."""
    computing = Stop()
    broken = asyncio.Event()
    house.workers.compute = computing
    generate = house.workers.generate

    async def break_off(task: Task) -> None:
        call = asyncio.create_task(generate(task))
        await computing.reached.wait()
        call.cancel()
        await asyncio.wait({call})
        broken.set()
        raise WorkerUnreachable("the connection broke")

    house.workers.generate = break_off
    async with house.dispatching():
        job_id = await submit()
        await broken.wait()
        # Longer than the lease: without heartbeats it would be taken away meanwhile.
        first = await row(house.engine, job_id)
        await eventually(lambda: renewed(house, first))
        computing.opened.set()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, house.workers.runs[job_id]) == (Status.COMPLETED, 1, 1)


async def test_cancel_reaches_a_running_worker_at_once(house: House, submit: Any) -> None:
    house.workers.compute = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.compute.reached.wait()
        await house.store.cancel(job_id)
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt) == (Status.CANCELLED, 1)
    assert [task.lease.job_id for task in house.workers.let_go] == [job_id]


@pytest.mark.parametrize("act", ["cancel", "delete"])
async def test_a_call_that_waits_for_a_gpu_is_let_go_of(house: House, submit: Any, act: str) -> None:
    """Serve would start a GPU node for a call that stays in its queue."""
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        await getattr(house.store, act)(job_id)

        async def let_go() -> list[Task]:
            return house.workers.let_go

        assert [task.lease.job_id for task in await eventually(let_go)] == [job_id]
    assert house.workers.runs == {}


async def test_a_call_is_let_go_of_although_the_notification_was_lost(house: House, submit: Any) -> None:
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        # What a cancel does, without its NOTIFY.
        await execute(
            house.engine,
            "UPDATE jobs SET status = 'cancelled', completed_at = now(), lease_token = NULL, lease_expires_at = NULL",
        )

        async def let_go() -> list[Task]:
            return house.workers.let_go

        assert [task.lease.job_id for task in await eventually(let_go)] == [job_id]


async def test_waiting_for_a_gpu_may_take_longer_than_a_lease(house: House, submit: Any) -> None:
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        # Again and again: the lease goes on for as long as the call waits.
        for _ in range(3):
            first = await row(house.engine, job_id)
            await eventually(lambda first=first: renewed(house, first))
        house.workers.before_start.opened.set()
        job = await house.until_ended(job_id)
    assert (job.status, len(house.workers.tasks)) == (Status.COMPLETED, 1)


async def test_a_late_start_of_an_old_claim_leaves_the_new_one_its_lease(house: House, submit: Any) -> None:
    house.workers.before_start = Stop()
    async with house.dispatching() as dispatcher:
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        old = Lease(job_id=job_id, token="of an older claim", attempt=1)
        assert await dispatcher.report(Started(lease=old)) is Verdict.LEASE_LOST
        first = await row(house.engine, job_id)
        await eventually(lambda: renewed(house, first))


async def renewed(house: House, first: Mapping[str, Any]) -> bool:
    found = await row(house.engine, first["id"])
    assert found["lease_token"] == first["lease_token"], "the lease ran out"
    return found["lease_expires_at"] > first["lease_expires_at"]


async def test_a_new_dispatcher_takes_the_report_of_a_worker_that_went_on(house: House, submit: Any) -> None:
    computing = Stop()
    house.workers.compute = computing
    async with house.dispatching():
        job_id = await submit()
        await computing.reached.wait()
    computing.opened.set()
    async with house.dispatching():
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt) == (Status.COMPLETED, 1)
    assert house.workers.runs == {job_id: 1}


async def test_a_dispatcher_that_dies_in_intake_loses_nothing(
    house: House, source: HttpSource, submit: Any, image: bytes
) -> None:
    source.routes["/slow"] = stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    async with house.dispatching():
        job_id = await submit(sources={"image": source.url("/slow")})
        await house.until(job_id, lambda job: job.stage == "fetching")
    source.routes["/slow"] = reply(200, image)
    async with house.dispatching():
        job = await house.until_ended(job_id)
    assert (job.status, job.faults) == (Status.COMPLETED, 0)


async def test_a_worker_that_falls_silent_is_replaced(house: House, submit: Any) -> None:
    """Nobody says that it died: only its lease tells."""
    vanished = asyncio.Event()

    house.workers.compute = once(dying(house))
    generate = house.workers.generate

    async def hang(task: Task) -> None:
        try:
            await generate(task)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            vanished.set()
            await asyncio.Event().wait()

    house.workers.generate = hang
    async with house.dispatching():
        job_id = await submit()
        await vanished.wait()
        # More than once: a last report of its may still be on the way.
        while (job := await house.store.get(job_id)).faults == 0:
            await silence(house.engine, job_id)
            await asyncio.sleep(0.2)
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 2, 1)


async def test_the_loops_survive_a_database_restart(house: House, submit: Any) -> None:
    async with house.dispatching():
        assert (await house.until_ended(await submit())).status is Status.COMPLETED
        with pytest.raises(Exception, match="terminating connection"):
            async with house.engine.connect() as db:
                await db.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() ORDER BY pid = pg_backend_pid()"
                    )
                )
        assert (await house.until_ended(await submit())).status is Status.COMPLETED

        async def listening() -> object:
            return await fetch(
                house.engine,
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'",
            )

        assert await eventually(listening)


async def test_an_output_that_does_not_match_its_report_is_made_again(house: House, submit: Any) -> None:
    house.workers.upload = lambda task: VIDEO if task.lease.attempt == 2 else b"half"
    async with house.dispatching():
        job = await house.until_ended(await submit())
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 2, 1)
    (retried,) = await fetch(house.engine, "SELECT labels FROM counters WHERE name = 'video_job_retries'")
    assert retried["labels"] == "ltx2,output_corrupt"


async def test_an_output_of_the_same_size_but_other_bytes_does_not_match(house: House, submit: Any) -> None:
    house.workers.upload = lambda task: VIDEO[::-1]
    async with house.dispatching():
        job_id = await submit()
        job = await house.until(job_id, lambda job: job.faults > 0)
    assert job.error_code == "output_corrupt"


async def test_a_poster_is_kept_beside_its_video_and_goes_with_it(
    house: House, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "RETENTION_S", 0.1)
    house.workers.poster = house.workers.said_of_poster = b"a webp"
    async with house.dispatching():
        job = await house.until_ended(await submit())
        assert job.poster_key == keys.poster(job.folder, 1)
        assert await house.storage.stat(job.poster_key) is not None
        await house.store.delete(job.id)

        async def gone() -> bool:
            return await house.storage.stat(str(job.poster_key)) is None

        assert await eventually(gone)


@pytest.mark.parametrize(("stored", "said"), [(None, b"a webp"), (b"half", b"a webp"), (b"other!", b"a webp")])
async def test_a_poster_that_is_not_the_one_that_was_made_is_none(
    house: House, submit: Any, stored: bytes | None, said: bytes
) -> None:
    house.workers.poster, house.workers.said_of_poster = stored, said
    async with house.dispatching():
        job = await house.until_ended(await submit())
    assert (job.status, job.attempt, job.poster_key) == (Status.COMPLETED, 1, None)
    assert job.output_key is not None


async def test_a_message_with_a_nul_does_not_block_the_end(house: House, submit: Any) -> None:
    """ffmpeg's words are quoted; PostgreSQL refuses NUL, and then nobody could ever end the job."""
    house.workers.compute = Stop()
    async with house.dispatching() as dispatcher:
        job_id = await submit()
        await house.workers.compute.reached.wait()
        lease = house.workers.tasks[0].lease
        report: Report = Failure(lease=lease, code="encode_failed", message="bad\0byte", transient=False)
        assert await dispatcher.report(report) is Verdict.GO_ON
        assert (await house.until_ended(job_id)).error_message == "badbyte"


async def test_a_job_not_started_in_time_fails_and_lets_go_of_its_call(house: House, submit: Any) -> None:
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit(expires_after=600)
        await house.workers.before_start.reached.wait()
        # Not by waiting: on a busy machine the time to start would be over before there is a call.
        await execute(house.engine, "UPDATE jobs SET expires_at = now() - interval '1 second'")
        job = await house.until_ended(job_id)
    assert (job.status, job.error_code) == (Status.FAILED, "expired")
    assert [task.lease.job_id for task in house.workers.let_go] == [job_id]


async def test_deleted_jobs_take_their_media_along(house: House, submit: Any) -> None:
    async with house.dispatching():
        job = await house.until_ended(await submit())
        await house.store.delete(job.id)

        async def gone() -> bool:
            return await house.storage.stat(job.output_key) is None

        await eventually(gone)
        assert await house.storage.stat(job.inputs["image"]["key"]) is None


# -------------------------------------------------------------------- our own store in the way


BROKEN_STORE = StorageError("The object store answered 403 AccessDenied for the bucket.", transient=True)


class Moody:
    """Makes methods of the store fail for as long as it is in the mood."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self._house = house
        self._monkeypatch = monkeypatch
        self._broken: set[str] = set()

    def fails(self, *methods: str, error: Exception = BROKEN_STORE) -> None:
        for method in methods:
            self._broken.add(method)
            real = getattr(LocalStorage, method)

            async def call(*args: Any, method: str = method, real: Any = real) -> Any:
                if method in self._broken:
                    raise error
                return await real(self._house.storage, *args)

            self._monkeypatch.setattr(self._house.storage, method, call)

    def recovers(self) -> None:
        self._broken.clear()


@pytest.fixture
def moody(house: House, monkeypatch: pytest.MonkeyPatch) -> Moody:
    monkeypatch.setattr(watch, "FRESH_S", 0.05)
    return Moody(house, monkeypatch)


def postponed(job: Job) -> bool:
    return job.stage == "storage_unavailable"


async def test_nothing_begins_while_the_store_refuses(house: House, submit: Any, moody: Moody) -> None:
    moody.fails("check")
    async with house.dispatching():
        job_id = await submit()
        await eventually(house.conditions)
        assert await house.conditions() == {
            EVERY_MODEL: Condition("storage_unavailable", f"The object store refuses: {BROKEN_STORE.message}")
        }
        job = await house.store.get(job_id)
        assert (job.status, job.attempt, job.inputs) == (Status.QUEUED, 0, None)
        moody.recovers()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 0)
    assert await house.conditions() == {}


@pytest.mark.parametrize(
    "error", [BROKEN_STORE, OSError(28, "No space left on device"), StorageError("Gone.", transient=False)]
)
async def test_inputs_that_our_store_does_not_take_are_fetched_again_later(
    house: House, submit: Any, moody: Moody, error: Exception
) -> None:
    """A full disk, or a bucket with another policy: the check does not see all of it. Before, three attempts in 3 s."""
    moody.fails("put_file", error=error)
    async with house.dispatching():
        job_id = await submit()
        await house.until(job_id, postponed)
        moody.recovers()
        job = await house.until_ended(job_id)
    assert (job.status, job.faults) == (Status.COMPLETED, 0)


async def test_a_call_that_waited_since_before_the_store_went_away_does_not_start(
    house: House, submit: Any, moody: Moody
) -> None:
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        moody.fails("check")
        await eventually(house.conditions)
        house.workers.before_start.opened.set()
        await house.until(job_id, postponed)
        assert house.workers.runs == {}
        moody.recovers()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, job.faults, house.workers.runs[job_id]) == (Status.COMPLETED, 1, 0, 1)


@pytest.mark.parametrize(("ours", "faults"), [(True, 0), (False, 1)])
async def test_a_run_that_could_not_store_its_video_is_to_blame_only_if_we_could(
    house: House, submit: Any, moody: Moody, ours: bool, faults: int
) -> None:
    house.workers.compute = Stop()
    async with house.dispatching() as dispatcher:
        job_id = await submit()
        await house.workers.compute.reached.wait()
        if ours:
            moody.fails("check")
        lease = house.workers.tasks[0].lease
        report = Failure(lease=lease, code="storage_unavailable", message="Could not upload: 403.", transient=not ours)
        report = report if ours else report.model_copy(update={"transient": True})
        assert await dispatcher.report(report) is Verdict.GO_ON
        job = await house.store.get(job_id)
        assert (job.status, job.faults, job.attempt) == (Status.QUEUED, faults, 1)
        moody.recovers()
        house.workers.compute.opened.set()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt) == (Status.COMPLETED, 2)


async def test_a_video_that_cannot_be_verified_now_is_not_made_again(house: House, submit: Any, moody: Moody) -> None:
    """Its worker is free at once; before, it repeated its report for ten minutes and the GPU ran three times."""
    moody.fails("stat")
    async with house.dispatching():
        job_id = await submit()
        await house.until(job_id, postponed)
        await house.workers.idle()
        assert (await house.store.get(job_id)).status is Status.PROCESSING
        moody.recovers()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, job.faults, house.workers.runs[job_id]) == (Status.COMPLETED, 1, 0, 1)


async def test_a_held_video_is_completed_by_the_next_dispatcher(house: House, submit: Any, moody: Moody) -> None:
    moody.fails("stat")
    async with house.dispatching():
        job_id = await submit()
        await house.until(job_id, postponed)
        await house.workers.idle()
    moody.recovers()
    async with house.dispatching():
        job = await house.until_ended(job_id)
    assert (job.status, house.workers.runs[job_id]) == (Status.COMPLETED, 1)


# -------------------------------------------------------------------- models that do not start


BROKEN_MODEL = Condition("model_unavailable", "ltx2 cannot start: FileNotFoundError: /weights")


async def test_calls_for_a_model_that_does_not_start_are_taken_back(house: House, submit: Any) -> None:
    """Serve goes on trying for as long as a call waits. The job waits with us instead, and says why."""
    house.workers.before_start = Stop()
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        house.workers.troubles["ltx2"] = BROKEN_MODEL
        job = await house.until(job_id, lambda job: job.lease_token is None)
        assert (job.status, job.attempt) == (Status.QUEUED, 0)
        assert await house.conditions() == {"ltx2": BROKEN_MODEL}
        assert [task.lease.job_id for task in house.workers.let_go] == [job_id]
        house.workers.troubles.clear()
        house.workers.before_start.opened.set()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 0)


async def test_calls_for_which_no_machine_will_be_rented_are_taken_back(house: House, submit: Any) -> None:
    """Serve would want a replica, and Ray a node, for as long as one waits."""
    house.workers.before_start = Stop()
    outlooks = Outlooks(house.engine)
    async with house.dispatching():
        job_id = await submit()
        await house.workers.before_start.reached.wait()
        house.workers.troubles["ltx2"] = Condition("no_node_fits", "No node takes a replica of ltx2: needs 1 GPU.")
        await outlooks.note("ltx2", Outlook(start_s=300, code="weights_unavailable", message="LTX2_WEIGHTS: 403"))
        job = await house.until(job_id, lambda job: job.lease_token is None)
        assert (job.status, job.attempt) == (Status.QUEUED, 0)
        assert await house.conditions() == {"ltx2": Condition("weights_unavailable", "LTX2_WEIGHTS: 403")}
        await outlooks.note("ltx2", Outlook(start_s=300))
        house.workers.troubles.clear()
        house.workers.before_start.opened.set()
        job = await house.until_ended(job_id)
    assert (job.status, job.attempt) == (Status.COMPLETED, 1)


async def test_jobs_of_a_model_that_does_not_start_fail_at_their_deadline_and_say_why(
    house: House, submit: Any
) -> None:
    house.workers.troubles["ltx2"] = BROKEN_MODEL
    async with house.dispatching():
        await eventually(house.conditions)
        job_id = await submit(expires_after=600)
        await execute(house.engine, "UPDATE jobs SET expires_at = now() - interval '1 second'")
        job = await house.until_ended(job_id)
    assert (job.status, job.error_code) == (Status.FAILED, "model_unavailable")
    assert "FileNotFoundError: /weights" in job.error_message
    assert house.workers.runs == {}


# -------------------------------------------------------------------- neighbours


async def test_poison_takes_no_neighbour_along(
    engine: AsyncEngine, database_url: str, tmp_path: Path, source: HttpSource
) -> None:
    """Three jobs on a replica, one of which kills it each time: that one ends after three attempts, the others do."""
    house = House(engine, database_url, tmp_path)
    workers = house.workers = OneProcess(house.storage, {"ltx2": 3})
    ids: dict[str, str] = {}
    on_the_gpu, all_there = asyncio.Event(), asyncio.Event()

    async def kills(task: Task) -> bool:
        if task.lease.job_id != ids["poison"]:
            return False
        on_the_gpu.set()
        if not task.alone:
            await all_there.wait()
            # In company: the others have said that they wait for the GPU.
            for other in ("one", "two"):
                await house.until(ids[other], lambda job: job.stage == "waiting_for_gpu" and job.attempt > 0)
        return True

    workers.kills = kills
    async with house.dispatching():
        for name in ("poison", "one", "two"):
            job = await house.store.submit(new_job(name, sources={"image": source.url("/image")}))
            ids[name] = job.id
            await on_the_gpu.wait()
        all_there.set()
        jobs = {name: await house.until_ended(job_id) for name, job_id in ids.items()}
    assert (jobs["poison"].status, jobs["poison"].error_code) == (Status.FAILED, "worker_lost")
    assert jobs["poison"].attempt == 3
    for name in ("one", "two"):
        assert (jobs[name].status, jobs[name].attempt, jobs[name].faults) == (Status.COMPLETED, 2, 0)
    # Once in company, then alone.
    assert workers.deaths == [set(ids.values()), {ids["poison"]}, {ids["poison"]}]


# -------------------------------------------------------------------- rows and reports that are not as they should be


async def test_a_row_that_nobody_can_read_fails_alone(house: House, submit: Any) -> None:
    """As after a redeployment to another version. Before, the queue of its model stood still."""
    house.workers.before_start = Stop()
    async with house.dispatching():
        odd = await submit()
        await house.until(odd, lambda job: job.inputs is not None)
    await execute(house.engine, """UPDATE jobs SET inputs = '{"image": {"unheard": "of"}}'""")
    house.workers.before_start.opened.set()
    async with house.dispatching():
        good = await submit()
        found = [await house.until_ended(job_id) for job_id in (odd, good)]
    assert [job.status for job in found] == [Status.FAILED, Status.COMPLETED]
    assert (found[0].error_code, found[0].attempt) == ("internal_error", 0)
    assert {job.id for job in await house.store.list()} == {odd, good}


async def test_a_code_that_nobody_knows_is_a_defect(house: House, submit: Any) -> None:
    house.workers.compute = Stop()
    async with house.dispatching() as dispatcher:
        job_id = await submit()
        await house.workers.compute.reached.wait()
        lease = house.workers.tasks[0].lease
        await dispatcher.report(Failure(lease=lease, code="made,up", message="hm", transient=False))
        assert (await house.until_ended(job_id)).error_code == "internal_error"
    (counted,) = await fetch(house.engine, "SELECT labels FROM counters WHERE name = 'video_jobs'")
    assert counted["labels"] == "ltx2,failed,internal_error"


async def test_links_are_renewed_for_whoever_holds_the_job(house: House, submit: Any) -> None:
    house.workers.compute = Stop()
    async with house.dispatching() as dispatcher:
        await submit()
        await house.workers.compute.reached.wait()
        task = house.workers.tasks[0]
        stale = task.model_copy(update={"output_url": "http://old.example/", "inputs": {}})
        renewed = await dispatcher.renew(stale)
        assert (renewed.lease, renewed.params, renewed.inputs.keys()) == (task.lease, task.params, {"image"})
        assert urlsplit(renewed.output_url).path == urlsplit(task.output_url).path
        lost = stale.model_copy(update={"lease": task.lease.model_copy(update={"token": "another"})})
        assert await dispatcher.renew(lost) == lost
        house.workers.compute.opened.set()


# ---------------------------------------------------------------- classes of GPUs

#: What the jobs here ask for: the default of everything.
SIZE = MODELS["ltx2"].size(MODELS["ltx2"].params())


def ability(deployment: str, size: int) -> Ability:
    said = {"standard": size, "quality": size}
    return Ability(deployment=deployment, model="ltx2", random_weights=False, variants=said, default_variant="standard")


@pytest.fixture
def classes(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """LTX-2 on two classes."""
    monkeypatch.setattr(abilities_module, "FRESH_S", 0)
    house.workers = FakeWorkers(house.storage, {"ltx2": 2, "ltx2-40gb": 2})
    house.deployments = deployments({"ltx2": [80, 40]})
    return house


async def test_a_job_is_handed_to_its_own_deployment(classes: House) -> None:
    async with classes.dispatching():
        jobs = [await classes.until_ended(await classes.waiting(name)) for name in ("", "ltx2-40gb")]
    assert [job.status for job in jobs] == [Status.COMPLETED] * 2
    assert [task.deployment for task in classes.workers.tasks] == ["ltx2", "ltx2-40gb"]


async def test_what_turns_out_too_large_goes_to_the_next_class(classes: House) -> None:
    """A replica says less than was expected of its class; that costs no attempt."""
    async with classes.dispatching() as dispatcher:
        await dispatcher.able(ability("ltx2-40gb", SIZE - 1))
        job = await classes.until_ended(await classes.waiting("ltx2-40gb"))
    assert (job.status, job.deployment, job.attempt, job.faults) == (Status.COMPLETED, "ltx2", 1, 0)
    assert [task.deployment for task in classes.workers.tasks] == ["ltx2"]


async def test_what_no_class_can_make_fails_and_says_so(classes: House) -> None:
    async with classes.dispatching() as dispatcher:
        for name in ("ltx2", "ltx2-40gb"):
            await dispatcher.able(ability(name, SIZE - 1))
        job = await classes.until_ended(await classes.waiting("ltx2-40gb"))
    assert (job.status, job.error_code, job.attempt) == (Status.FAILED, "request_too_large", 0)
    assert "No GPU here has the memory for this video; at most" in (job.error_message or "")
    assert classes.workers.tasks == []


async def test_jobs_of_a_class_that_is_not_served_any_more_go_elsewhere(classes: House) -> None:
    ids = [await classes.waiting("ltx2-24gb") for _ in range(3)]
    async with classes.dispatching():
        jobs = [await classes.until_ended(job_id) for job_id in ids]
    assert [(job.status, job.deployment) for job in jobs] == [(Status.COMPLETED, "ltx2-40gb")] * 3


async def test_who_waits_for_a_node_that_nobody_has_goes_where_one_is(classes: House) -> None:
    """The call waits on a handle, perhaps for ever; the other class comes later."""
    classes.workers.away = {"ltx2", "ltx2-40gb"}
    waits = classes.workers.before_start = Stop()
    async with classes.dispatching():
        job_id = await classes.waiting("ltx2")
        await waits.reached.wait()
        classes.workers.before_start = nothing
        classes.workers.away = {"ltx2"}
        job = await classes.until_ended(job_id)
    assert (job.status, job.deployment, job.attempt) == (Status.COMPLETED, "ltx2-40gb", 1)
    assert [task.deployment for task in classes.workers.let_go] == ["ltx2"]


async def test_a_class_that_does_not_start_leaves_its_jobs_to_another(classes: House) -> None:
    classes.workers.troubles["ltx2-40gb"] = Condition(WaitCode.MODEL_UNAVAILABLE, "ltx2-40gb cannot start.")
    async with classes.dispatching():
        job = await classes.until_ended(await classes.waiting("ltx2-40gb"))
    assert (job.status, job.deployment) == (Status.COMPLETED, "ltx2")


async def test_who_waits_for_a_machine_that_may_not_be_rented_goes_where_a_node_is(classes: House) -> None:
    classes.workers.away = {"ltx2-40gb"}
    outlook = Outlook(start_s=300, code=WaitCode.CAP_REACHED, message="Two nodes are the most.")
    await Outlooks(classes.engine).note("ltx2-40gb", outlook)
    async with classes.dispatching():
        job = await classes.until_ended(await classes.waiting("ltx2-40gb"))
    assert (job.status, job.deployment) == (Status.COMPLETED, "ltx2")


async def test_what_only_a_class_that_is_away_can_make_waits_for_it(classes: House) -> None:
    classes.workers.away = {"ltx2"}
    async with classes.dispatching() as dispatcher:
        await dispatcher.able(ability("ltx2-40gb", SIZE - 1))
        job = await classes.until_ended(await classes.waiting("ltx2-40gb"))
    # It was handed over to the one whose node is away: Serve says that none fits, until it comes.
    assert (job.status, job.deployment) == (Status.COMPLETED, "ltx2")


@pytest.mark.parametrize("able", [True, False])
async def test_what_a_replica_takes_up_meanwhile_is_left_to_it(classes: House, able: bool) -> None:
    """Its word comes after the look at the job, before the move or the refusal."""
    dispatcher = classes.dispatcher()
    await dispatcher._look()
    job_id = await classes.waiting("ltx2-24gb")
    (claim,) = await classes.store.claim_to_run("ltx2-24gb", 1)
    for name in () if able else ("ltx2", "ltx2-40gb"):
        await dispatcher.able(ability(name, SIZE - 1))
    assert await classes.store.start(Started(lease=claim.lease)) is Verdict.GO_ON
    assert await dispatcher._astray.stays(claim.job)
    found = await row(classes.engine, job_id)
    assert (found["status"], found["deployment"], found["lease_token"]) == (
        *("processing", "ltx2-24gb"),
        claim.lease.token,
    )


@pytest.mark.parametrize("claimed", [False, True])
async def test_after_an_outage_nobody_moves_before_it_was_seen_who_is_there(classes: House, claimed: bool) -> None:
    """By then no class was seen for long, and only the largest would count."""
    async with classes.dispatching():
        await classes.until_ended(await classes.waiting("ltx2-40gb"))
    await execute(classes.engine, "UPDATE abilities SET had_at = now() - interval '1 hour'")
    job_id = await classes.waiting("ltx2-40gb")
    dispatcher = classes.dispatcher()
    if claimed:
        (claim,) = await classes.store.claim_to_run("ltx2-40gb", 1)
        assert await dispatcher._astray.stays(claim.job)
    assert await dispatcher._move_astray() == 0
    assert (await row(classes.engine, job_id))["deployment"] == "ltx2-40gb"
    await dispatcher._look()
    assert await dispatcher._move_astray() == 0
    assert (await row(classes.engine, job_id))["deployment"] == "ltx2-40gb"


async def nothing(_: Task) -> None:
    pass


# ---------------------------------------------------------------- chains


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("clip") / "a.mp4", seconds=1).read_bytes()


@pytest.fixture
def chain(house: House, source: HttpSource, clip: bytes) -> Callable[..., Awaitable[list[str]]]:
    """Makes so many jobs, each of which takes the video of the one before; whose workers make real ones."""
    house.workers = FakeWorkers(house.storage, {"ltx2": 2, "wav2lip": 2})
    house.workers.video = clip
    source.routes["/sound"] = reply(200, clip)

    async def chain(links: int, **changes: Any) -> list[str]:
        made = await house.store.submit(new_job(sources={"image": source.url("/image")}, **changes))
        assert made is not None
        ids = [made.id]
        while len(ids) < links:
            sources = {"video": f"job:{ids[-1]}", "audio": source.url("/sound")}
            made = await house.store.submit(new_job(model="wav2lip", params={}, sources=sources, **changes))
            assert made is not None
            ids.append(made.id)
        return ids

    return chain


async def test_each_link_of_a_chain_takes_the_video_of_the_one_before(house: House, chain: Any, clip: bytes) -> None:
    async with house.dispatching(), house.dispatching():
        ids = await chain(5)
        jobs = [await house.until_ended(job_id) for job_id in ids]
    assert {(job.status, job.attempt) for job in jobs} == {(Status.COMPLETED, 1)}
    assert [task.lease.job_id for task in house.workers.tasks] == ids
    for before, job in itertools.pairwise(jobs):
        # A copy of its own: the other job may be deleted while this one is made.
        assert job.inputs["video"]["key"].startswith(f"inputs/{job.folder}/")
        assert job.inputs["video"]["size"] == len(clip)
        assert before.completed_at <= job.started_at


async def test_a_worker_that_dies_at_each_link_costs_each_an_attempt(house: House, chain: Any) -> None:
    ids = await chain(5)
    left = set(ids)
    generate = house.workers.generate

    async def compute(task: Task) -> None:
        if task.lease.job_id in left:
            left.discard(task.lease.job_id)
            raise asyncio.CancelledError

    async def as_serve_says_it(task: Task) -> None:
        dies = task.lease.job_id in left
        try:
            await generate(task)
        except asyncio.CancelledError:
            if not dies:
                raise
            raise WorkerDied("the actor died") from None

    house.workers.compute, house.workers.generate = compute, as_serve_says_it  # type: ignore[method-assign]
    async with house.dispatching():
        jobs = [await house.until_ended(job_id) for job_id in ids]
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert [job.attempt for job in jobs] == [2] * 5


@pytest.mark.parametrize("link", [0, 2])
@pytest.mark.parametrize("how", ["cancelled", "deleted", "failed"])
async def test_behind_a_link_that_breaks_all_end(house: House, chain: Any, how: str, link: int) -> None:
    """The first link waits in a worker meanwhile, so all the others wait."""
    stop = Stop()
    ids: list[str] = []

    async def compute(task: Task) -> None:
        if task.lease.job_id == ids[0]:
            await stop()
        if how == "failed" and task.lease.job_id == ids[link]:
            raise Fault(FailureCode.NO_FACE_FOUND, "There is no face.")

    chained = await chain(5)
    ids += chained
    house.workers.compute = compute
    async with house.dispatching():
        await stop.reached.wait()
        if how == "cancelled":
            await house.store.cancel(ids[link])
            await house.until_ended(ids[link])
        elif how == "deleted":
            if link == 0:
                # One that runs has to be cancelled first.
                await house.store.cancel(ids[0])
                await house.until_ended(ids[0])
            await house.store.delete(ids[link])
        stop.opened.set()
        ended = [await house.until_ended(job_id) for job_id in ids if how != "deleted" or job_id != ids[link]]
    jobs = {job.id: job for job in ended}
    assert [jobs[job_id].status for job_id in ids[:link]] == [Status.COMPLETED] * link
    for before, job_id in itertools.pairwise(ids[link:]):
        job = jobs[job_id]
        if how == "cancelled" or (how == "deleted" and link == 0):
            assert job.status is Status.CANCELLED
        else:
            assert (job.status, job.error_code) == (Status.FAILED, "source_failed")
            assert f"Job {before}, whose video it needs," in str(job.error_message)
            assert {"deleted": "was deleted", "failed": "There is no face"}[how] in str(job.error_message)


async def test_a_video_that_a_later_link_can_not_take_is_its_own_failure(
    house: House, source: HttpSource, chain: Any
) -> None:
    house.workers.video = b"no video at all"
    async with house.dispatching():
        ids = await chain(3)
        jobs = [await house.until_ended(job_id) for job_id in ids]
    assert [(job.status, job.error_code) for job in jobs] == [
        (Status.COMPLETED, None),
        (Status.FAILED, "unsupported_media"),
        (Status.FAILED, "source_failed"),
    ]


async def test_a_video_that_was_made_elsewhere_is_fetched_by_the_next_link(
    house: House, source: HttpSource, chain: Any, clip: bytes
) -> None:
    source.routes["/elsewhere.mp4"] = reply(200, clip)
    ids = await chain(2)
    await house.store.end_externally(ids[0], video_url=source.url("/elsewhere.mp4"))
    async with house.dispatching():
        job = await house.until_ended(ids[1])
    assert (job.status, job.inputs["video"]["size"]) == (Status.COMPLETED, len(clip))


async def test_a_video_that_is_gone_from_the_store_is_said_to_be(house: House, chain: Any) -> None:
    ids = await chain(2)
    await execute(
        house.engine,
        "UPDATE jobs SET status = 'completed', completed_at = now(), output_key = 'outputs/gone/1/output.mp4'"
        " WHERE id = :id",
        id=ids[0],
    )
    async with house.dispatching():
        job = await house.until_ended(ids[1])
    assert (job.status, job.error_code) == (Status.FAILED, "source_failed")
    assert job.error_message == (
        "Input 'video': The other job's video was deleted before it could be used. Make it again, then this one."
    )
