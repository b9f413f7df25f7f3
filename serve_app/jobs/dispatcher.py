"""Moves jobs along: intake, dispatch to the GPUs, reports, sweeps, webhooks.

Holds nothing that PostgreSQL does not hold, so it can die at any time and several can run side by side.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from dataclasses import dataclass
from functools import partial

import psycopg
import structlog

from deployments.classes import Deployment
from deployments.contract import Ability, Failure, Lease, Outcome, Progress, Report, Started, Stopped, Task, Verdict
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.registry import MODELS
from serve_app.intake.inputs import Intake
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.astray import Astray
from serve_app.jobs.database import listen
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.delivery_queue import USER_SHARE
from serve_app.jobs.job import Claim, Job
from serve_app.jobs.orphans import Orphans
from serve_app.jobs.outlooks import Outlooks
from serve_app.jobs.presence import Presence
from serve_app.jobs.readiness import Readiness
from serve_app.jobs.reports import vetted
from serve_app.jobs.retention import Retention
from serve_app.jobs.store import JobStore
from serve_app.jobs.tasks import Tasks, UnreadableJob
from serve_app.jobs.windows import Windows
from serve_app.jobs.workers import WorkerDied, Workers, WorkerUnreachable
from serve_app.outbound.base import OutboundUnavailable
from serve_app.storage import keys
from serve_app.storage.base import Storage, StorageError
from serve_app.storage.watch import StorageWatch

log = structlog.get_logger()

#: Jobs whose inputs are fetched at the same time.
INTAKE_SLOTS = 32
#: How many of them one user may hold, so that nobody else waits for somebody's slow sources; fewer as they get scarce.
#: A key with many users leaves a part to the other keys: ``fair.py`` says how large a one.
INTAKE_SHARE = 4
#: Webhooks sent at the same time; a receiver may take half a minute.
DELIVERY_SLOTS = 64
#: Notifications wake the loops; this often they look by themselves, e.g. for jobs whose back-off is over.
POLL_S = 1.0
SWEEP_S = 2.0
#: Seconds until a loop that has stumbled goes on.
PAUSE_S = 1.0
#: How often a lease is renewed in its time.
RENEWALS = 3
RETENTION_S = 60.0


@dataclass
class _Work:
    """An intake, or a call of a replica."""

    task: asyncio.Task[None]
    #: As it was claimed.
    job: Job
    intake: bool
    #: This process renews the lease, until a replica has taken the call up.
    held: bool = True


class Dispatcher:
    """One per process. ``run`` never returns; ``report`` is what replicas call."""

    def __init__(
        self,
        *,
        database_url: str,
        store: JobStore,
        storage: Storage,
        intake: Intake,
        workers: Workers,
        deliveries: Deliveries,
        retention: Retention,
        orphans: Orphans,
        readiness: Readiness,
        windows: Windows,
        outlooks: Outlooks,
        abilities: Abilities,
        deployments: Sequence[Deployment],
        lease_s: float,
    ) -> None:
        """``deployments``: those that there may be."""
        self._database_url = database_url
        self._store = store
        self._storage = storage
        self._intake = intake
        self._workers = workers
        self._deliveries = deliveries
        self._retention = retention
        self._orphans = orphans
        self._readiness = readiness
        self._windows = windows
        self._outlooks = outlooks
        self._abilities = abilities
        self._presence = Presence()
        self._deployments = deployments
        self._astray = Astray(store, abilities)
        self._storage_watch = StorageWatch(storage)
        self._make = Tasks(storage, lease_s)
        self._lease_s = lease_s
        self._wakers: list[asyncio.Event] = []
        #: What this process does for jobs. By lease and not by job, since what is left of an older claim may end after
        #: the job was claimed again.
        self._works: dict[Lease, _Work] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run every loop until cancelled; then give back what no worker has started, for the next dispatcher."""
        try:
            await self._run_loops()
        finally:
            held = self._held()
            for task in (*(work.task for work in self._works.values()), *self._sending):
                task.cancel()
            for lease in held:
                await self._store.release(lease)

    async def _run_loops(self) -> None:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._listen())
            for name, step, poll_s in (
                ("intake", self._start_intakes, POLL_S),
                ("dispatch", self._start_calls, POLL_S),
                ("deliver", self._deliver, POLL_S),
                ("renew", self._renew, self._store.claim_s / RENEWALS),
                ("look", self._look, SWEEP_S),
                ("astray", self._move_astray, SWEEP_S),
                ("verify", self._verify, SWEEP_S),
                ("deadlines", self._store.expire_deadlines, SWEEP_S),
                ("settle", self._store.settle, SWEEP_S),
                ("retention", self._retain, RETENTION_S),
                ("orphans", self._orphans.sweep, RETENTION_S),
            ):
                loops.create_task(self._forever(name, step, poll_s))
            # Workers that went on while no dispatcher was up get one lease time to say so.
            await asyncio.sleep(self._lease_s)
            # So do they when the database was away, since none of them could report.
            loops.create_task(self._forever("leases", self._store.expire_leases, SWEEP_S, pause_s=self._lease_s))

    async def report(self, report: Report) -> Verdict:
        """Take a worker's report into the store and answer whether to go on."""
        report = vetted(report)
        lease = report.lease
        match report:
            case Started() if await self._storage_watch.trouble():
                # It waited on a handle since before the store went away. What it made could not be kept.
                await self._store.postpone(lease)
                verdict = Verdict.LEASE_LOST
                self._taken_up(lease)
            case Started():
                verdict = await self._store.start(report)
                self._taken_up(lease)
            case Progress():
                return await self._store.progress(report)
            case Outcome():
                verdict = await self._complete(report)
            case Failure(code=FailureCode.STORAGE_UNAVAILABLE) if await self._storage_watch.trouble(fresh=True):
                # Not only from there: then it is ours, and no attempt.
                await self._store.postpone(lease, report.timings)
                verdict = Verdict.GO_ON
            case Failure():
                verdict = await self._store.fail(report)
            case Stopped():
                verdict = await self._store.stopped(report)
        log.info(
            "report",
            job_id=lease.job_id,
            request_id=lease.request_id,
            attempt=lease.attempt,
            report=report.kind,
            verdict=verdict,
        )
        return verdict

    async def renew(self, task: Task) -> Task:
        """The task with links that are good from now on; as it is if its lease is lost, which its next report tells."""
        job = await self._store.get(task.lease.job_id)
        if job is None or job.lease_token != task.lease.token:
            return task
        return await self._make.of(job, task.lease)

    async def able(self, ability: Ability) -> None:
        """A replica says what it can be asked. Jobs that are beyond it go elsewhere when they are handed over."""
        await self._abilities.report(ability)
        log.info("able", deployment=ability.deployment, weights=ability.weights, variants=ability.variants)

    async def _complete(self, report: Outcome) -> Verdict:
        try:
            return await self._judge(report)
        except StorageError as error:
            # The video is stored, only the store cannot say so now. The worker need not wait for that.
            log.warning("video_unverified", job_id=report.lease.job_id, error=error.message)
            return await self._store.hold(report)

    async def _judge(self, report: Outcome) -> Verdict:
        """End the job if the stored video is the one that was made. Raises :class:`StorageError`."""
        job = await self._store.get(report.lease.job_id)
        if job is None or job.lease_token != report.lease.token:
            return await self._store.complete(report, "")
        key = keys.output(job.folder, report.lease.attempt)
        stored = await self._storage.stat(key)
        if stored is None or stored.size != report.size or (stored.md5 and stored.md5 != report.md5):
            found = f"{stored.size} bytes" if stored else "nothing"
            message = f"The stored video does not match its report: {found} instead of {report.size} bytes."
            return await self._store.fail(
                Failure(
                    lease=report.lease,
                    code=FailureCode.OUTPUT_CORRUPT,
                    message=message,
                    transient=True,
                    timings=report.timings,
                )
            )
        return await self._store.complete(report, key, await self._poster(report, job.folder))

    async def _poster(self, report: Outcome, folder: str) -> str | None:
        """Its key if it was made and is stored. One that is missing costs nobody a video."""
        if report.poster is None:
            return None
        key = keys.poster(folder, report.lease.attempt)
        try:
            stored = await self._storage.stat(key)
        except StorageError as error:
            log.warning("poster_unverified", job_id=report.lease.job_id, error=error.message)
            return None
        if stored is None or stored.size != report.poster.size or (stored.md5 and stored.md5 != report.poster.md5):
            log.warning("poster_corrupt", job_id=report.lease.job_id, found=stored and stored.size)
            return None
        return key

    # ---------------------------------------------------------------- loops

    async def _forever(
        self, name: str, step: Callable[[], Awaitable[int]], poll_s: float, *, pause_s: float | None = None
    ) -> None:
        """Call ``step`` while it finds work, then sleep until woken or for ``poll_s``. Pauses after its errors."""
        wake = asyncio.Event()
        self._wakers.append(wake)
        while True:
            found = 0
            wake.clear()
            try:
                found = await step()
            except Exception:
                # The database may be restarting: whatever was half done is still there to be done.
                log.exception("loop_failed", loop=name)
                await asyncio.sleep(PAUSE_S if pause_s is None else pause_s)
            if not found:
                try:
                    async with asyncio.timeout(poll_s):
                        await wake.wait()
                except TimeoutError:
                    continue

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

    async def _listen(self) -> None:
        while True:
            try:
                async for payload in listen(self._database_url):
                    kind, _, job_id = payload.partition(":")
                    if kind == "stop":
                        self._let_go({lease for lease in self._works if lease.job_id == job_id})
                    self._wake()
            except psycopg.Error as error:
                log.warning("listen_lost", error=str(error))
            await asyncio.sleep(PAUSE_S)

    async def _start_intakes(self) -> int:
        room = INTAKE_SLOTS - sum(work.intake for work in self._works.values())
        if room <= 0 or await self._storage_watch.trouble():
            return 0
        claimed = await self._store.claim_for_intake(room, share_of(room, INTAKE_SLOTS, INTAKE_SHARE), free=room)
        for claim in claimed:
            self._begin(claim, self._take_in(claim), intake=True)
        return len(claimed)

    def _begin(self, claim: Claim, work: Coroutine[None, None, None], *, intake: bool) -> None:
        task = asyncio.create_task(work)
        self._works[claim.lease] = _Work(task, claim.job, intake)
        # Not in the work itself: a task that is cancelled before its first step never gets there.
        task.add_done_callback(partial(self._ended, claim.lease))

    def _ended(self, lease: Lease, _: asyncio.Task[None]) -> None:
        self._works.pop(lease, None)
        self._wake()

    def _held(self) -> list[Lease]:
        """Those that this process renews."""
        return [lease for lease, work in self._works.items() if work.held]

    def _taken_up(self, lease: Lease) -> None:
        """From now on it is not for this process to renew it."""
        if work := self._works.get(lease):
            work.held = False

    async def _take_in(self, claim: Claim) -> None:
        job, lease = claim.job, claim.lease
        with structlog.contextvars.bound_contextvars(job_id=job.id, request_id=job.request_id):
            try:
                specs = MODELS[job.model].inputs
                found = await self._store.resolve(job)
                inputs = await self._intake.admit(
                    job.folder, specs, found.urls, job.uploads, found.videos, owner=job.owner
                )
                await self._store.admit(lease, inputs)
                log.info("inputs_ready", inputs={name: item.size for name, item in inputs.items()})
            except (StorageError, OutboundUnavailable, OSError) as error:
                # Our store, disk or way out is down, which is neither the job's fault nor an attempt.
                log.warning("intake_postponed", error=str(error))
                await self._store.postpone(lease)
            except Fault as error:
                log.info("inputs_rejected", code=error.code, error=error.message)
                await self._store.fail(
                    Failure(lease=lease, code=error.code, message=error.message, transient=error.transient)
                )
            except Exception:
                log.exception("intake_crashed")
                message = "Taking the inputs in failed; the log says why."
                await self._store.fail(
                    Failure(lease=lease, code=FailureCode.INTERNAL_ERROR, message=message, transient=True)
                )

    async def _start_calls(self) -> int:
        if await self._storage_watch.trouble():
            return 0
        started = 0
        for deployment, wanted in (await self._windows.of(await self._workers.capacities())).items():
            window = self._readiness.window(deployment, wanted)
            for claim in await self._store.claim_to_run(deployment, window) if window else ():
                self._begin(claim, self._call(claim), intake=False)
                started += 1
        return started

    async def _move_astray(self) -> int:
        held = {lease: work.job for lease, work in self._works.items() if work.held and not work.intake}
        return await self._astray.move(held, self._let_go)

    async def _call(self, claim: Claim) -> None:
        job, lease = claim.job, claim.lease
        with structlog.contextvars.bound_contextvars(job_id=job.id, request_id=job.request_id, attempt=lease.attempt):
            try:
                if not await self._astray.stays(job):
                    return
                log.info("dispatched", model=job.model, deployment=job.deployment)
                await self._workers.generate(await self._make.of(job, lease))
                # Reported already, unless the worker refused it.
                await self._store.release(lease)
            except UnreadableJob as error:
                log.error("job_unreadable", error=str(error))
                message = "The job's record is not one that this version of the service can run."
                await self._store.fail(
                    Failure(lease=lease, code=FailureCode.INTERNAL_ERROR, message=message, transient=False)
                )
            except WorkerDied as error:
                log.warning("worker_died", error=str(error))
                await self._store.release(lease)
                message = "The GPU worker died."
                await self._store.fail(
                    Failure(lease=lease, code=FailureCode.WORKER_LOST, message=message, transient=True)
                )
            except WorkerUnreachable as error:
                # A worker that lives keeps its lease by reporting; one that does not loses it by time.
                log.warning("worker_unreachable", error=str(error))
                await self._store.release(lease)
            except Exception:
                log.exception("call_failed")
                await self._store.release(lease)

    def _let_go(self, leases: Set[Lease]) -> None:
        for lease in leases & self._works.keys():
            self._works[lease].task.cancel()

    async def _renew(self) -> int:
        if held := self._held():
            lost = set(await self._store.renew(held))
            # The notification to let go was missed, e.g. while the database restarted.
            for lease in lost:
                self._taken_up(lease)
            self._let_go(lost)
        return 0

    async def _deliver(self) -> int:
        room = DELIVERY_SLOTS - len(self._sending)
        share = share_of(room, DELIVERY_SLOTS, USER_SHARE)
        due = await self._deliveries.claim(room, share, free=room) if room > 0 else []
        for delivery in due:
            task = asyncio.create_task(self._deliveries.send(delivery))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        return len(due)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._wake()

    async def _look(self) -> int:
        """See which deployments work; take back what waits for one that does not start, so that Serve stops trying."""
        troubles = await self._storage_watch.trouble()
        outlooks = await self._outlooks.current()
        health = await self._workers.health()
        closed = await self._readiness.look(health, troubles, outlooks)
        # Whose machines nobody offers now may be had later; until then a larger one makes their jobs.
        had = self._presence.had(health, outlooks, {name for name in health if self._readiness.open(name)})
        await self._abilities.see([each for each in self._deployments if each.name in health], had)
        for name in closed:
            works = self._works.items()
            waiting = {lease for lease, work in works if work.held and not work.intake and work.job.deployment == name}
            self._let_go(waiting)
            for lease in waiting:
                await self._store.release(lease)
        return 0

    async def _verify(self) -> int:
        """Look again after videos that could not be verified when they were made."""
        reports = await self._store.unverified()
        if not reports or await self._storage_watch.trouble():
            return 0
        for report in reports:
            try:
                await self._judge(report)
            except StorageError as error:
                log.warning("video_unverified", job_id=report.lease.job_id, error=error.message)
        return 0

    async def _retain(self) -> int:
        await self._retention.tidy()
        return await self._retention.forget_jobs() + await self._retention.delete_media()


def share_of(room: int, slots: int, share: int) -> int:
    """How many slots one user may hold while ``room`` of them are free: the last are for who has none yet."""
    return min(share, 1 + room * share // slots)
