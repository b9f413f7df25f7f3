"""GPU workers in this process: they run the replica's real :class:`~deployments.run.Run` and really store a video.

A worker lives on when its call is let go of, as a replica does. ``reporter`` is the way to the dispatcher; None means
that there is none at the moment.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from deployments.contract import Failure, FileFacts, MediaFacts, Outcome, Report, Stopped, Task, Verdict
from deployments.faults import Fault
from deployments.occupancy import Occupancy
from deployments.run import Reporter, Run, RunStopped
from serve_app.jobs.conditions import Condition
from serve_app.jobs.fleet_size import Capacity
from serve_app.jobs.readiness import ModelHealth
from serve_app.jobs.workers import WorkerDied
from serve_app.storage.local import LocalStorage

VIDEO = b"an mp4"
FACTS = MediaFacts(width=64, height=64, fps="24/1", frames=25, has_audio=False)


class Stop:
    """A place to wait in: the test sees who has come and lets them go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, *_: object) -> None:
        self.reached.set()
        await self.opened.wait()


class FakeWorkers:
    """Set ``before_start``, ``compute``, ``upload`` or ``after`` to make a worker wait, lie or die there."""

    def __init__(self, storage: LocalStorage, windows: Mapping[str, int]) -> None:
        self._storage = storage
        self._windows = windows
        self.reporter: Reporter | None = None
        #: What keeps a deployment from working, and those of which no node is there.
        self.troubles: dict[str, Condition] = {}
        self.away: set[str] = set()
        #: Every task that was handed over.
        self.tasks: list[Task] = []
        #: Calls that were let go of.
        self.let_go: list[Task] = []
        #: How often the model ran, by job.
        self.runs: Counter[str] = Counter()
        self._alive: set[asyncio.Task[None]] = set()
        self.before_start: Callable[[Task], Awaitable[None]] = _nothing
        self.compute: Callable[[Task], Awaitable[None]] = _nothing
        self.video = VIDEO
        #: What is stored instead of what is reported.
        self.upload: Callable[[Task], bytes] = lambda task: self.video
        #: Stored as the poster; None: there is none. And what is said of it.
        self.poster: bytes | None = None
        self.said_of_poster: bytes | None = None
        #: The fate of the call once the worker is done.
        self.after: Callable[[Task], Awaitable[None]] = _nothing

    async def capacities(self) -> Mapping[str, Capacity]:
        return {name: Capacity(running=1, most=1, slots=window - 1) for name, window in self._windows.items()}

    async def health(self) -> Mapping[str, ModelHealth]:
        return {
            name: ModelHealth(name not in self.troubles, self.troubles.get(name), name not in self.away)
            for name in self._windows
        }

    async def generate(self, task: Task) -> None:
        self.tasks.append(task)
        run = Run(task, self)
        try:
            await self.before_start(task)
        except asyncio.CancelledError:
            # Nothing had begun: Serve drops the request from its queue.
            self.let_go.append(task)
            raise
        work = asyncio.create_task(self._work(task, run))
        self._alive.add(work)
        work.add_done_callback(self._alive.discard)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self.let_go.append(task)
            run.hurry()
            raise
        await self.after(task)

    async def report(self, report: Report) -> Verdict:
        if self.reporter is None:
            raise ConnectionError("there is no dispatcher")
        return await self.reporter.report(report)

    async def renew(self, task: Task) -> Task:
        if self.reporter is None:
            raise ConnectionError("there is no dispatcher")
        return await self.reporter.renew(task)

    async def kill(self) -> None:
        """Every worker dies in the middle of what it does."""
        for work in list(self._alive):
            work.cancel()
        await asyncio.gather(*self._alive, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until every worker has ended."""
        await asyncio.gather(*self._alive, return_exceptions=True)

    async def _work(self, task: Task, run: Run) -> None:
        if not await run.start():
            return
        task = await run.renewed()
        heartbeat = asyncio.create_task(run.heartbeat())
        report: Outcome | Failure | Stopped | None
        try:
            self.runs[task.lease.job_id] += 1
            await self._compute(task, run)
            await self._put(task.output_url, self.upload(task))
            if self.poster is not None:
                await self._put(task.poster_url, self.poster)
            report = Outcome(
                lease=task.lease,
                size=len(self.video),
                md5=hashlib.md5(self.video, usedforsecurity=False).hexdigest(),
                media=FACTS,
                poster=_facts(self.said_of_poster),
                timings={"run": 1.0},
            )
        except RunStopped:
            report = Stopped(lease=task.lease) if run.verdict is Verdict.CANCELLED else None
        except Fault as fault:
            report = Failure(lease=task.lease, code=fault.code, message=fault.message, transient=fault.transient)
        finally:
            heartbeat.cancel()
        if report is not None:
            await run.finish(report)

    async def _compute(self, task: Task, run: Run) -> None:
        run.step("generating", 50)
        await run.unless_stopped(self.compute(task))

    async def _put(self, link: str, content: bytes) -> None:
        """What the HTTP route does, the signature included."""
        url = urlsplit(link)
        key = unquote(url.path).removeprefix("/files/")
        self._storage.verify("PUT", key, dict(parse_qsl(url.query)))

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        await self._storage.write(key, chunks(), 2**20)


class OneProcess(FakeWorkers):
    """All tasks share one process, as on a replica: one computes at a time, and when one kills it, all are gone.

    ``kills`` says of a task whether it does; it is awaited when the task computes.
    """

    def __init__(self, storage: LocalStorage, windows: Mapping[str, int]) -> None:
        super().__init__(storage, windows)
        self._occupancy = Occupancy()
        self._gpu = asyncio.Lock()
        self.kills: Callable[[Task], Awaitable[bool]] = _no
        #: Jobs that were in the process each time it died.
        self.deaths: list[set[str]] = []

    async def generate(self, task: Task) -> None:
        self.tasks.append(task)
        async with self._occupancy.entered(alone=task.alone):
            work = asyncio.create_task(self._work(task, Run(task, self)), name=task.lease.job_id)
            self._alive.add(work)
            work.add_done_callback(self._alive.discard)
            await asyncio.wait({work})
            if work.cancelled():
                raise WorkerDied("the actor died")
            work.result()

    async def _compute(self, task: Task, run: Run) -> None:
        run.step("waiting_for_gpu", 10)
        async with self._gpu:
            run.step("generating", 50)
            if await self.kills(task):
                self.deaths.append({work.get_name() for work in self._alive})
                for work in list(self._alive):
                    work.cancel()
                await asyncio.Event().wait()


def _facts(file: bytes | None) -> FileFacts | None:
    return None if file is None else FileFacts(size=len(file), md5=hashlib.md5(file, usedforsecurity=False).hexdigest())


async def _no(_: Task) -> bool:
    return False


async def _nothing(_: Task) -> None:
    return
