"""Who watches which job: told by PostgreSQL, looked at once for all who watch.

One connection listens, for the process. A change marks its job; a loop looks at the marked ones, many at a time, and
hands what it sees to whoever watches. Nothing is queued: who is slow finds the latest, and nobody asks an idle line.

The place of a waiting job costs a query of its own. So those that wait have a loop of their own, and delay nobody whose
job runs. And a place changes without its job's row: it is looked at again after the line of the model has moved, by a
third loop, which rests for longer than it works. With many who wait, each is told its place less often.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import psycopg
import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = structlog.get_logger()

#: Jobs that are looked at together: those that do not wait, and those that do, or may.
BATCH = 50
WAITING_BATCH = 5
#: Least seconds between two looks at a job for its place alone.
PLACE_S = 5.0
#: How much longer than it looks for places it rests.
RESTS = 4
#: Seconds until a database that does not answer is asked again.
AGAIN_S = 1.0
#: What passes by itself: the next look may be answered.
_PASSING = (psycopg.OperationalError, OperationalError, PoolTimeout, OSError, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A job as those who watch it see it."""

    #: Whose job it is.
    key_id: str
    version: int
    #: The job as JSON.
    body: str
    #: It does not change any more.
    ended: bool
    #: The model in whose line it waits; None: it does not wait.
    line: str | None


#: Looks at jobs, by id; those that are not there are absent.
Look = Callable[[Sequence[str]], Awaitable[Mapping[str, Shown]]]
#: Payloads as :func:`~serve_app.jobs.database.listen` yields them.
Listen = Callable[[], AsyncGenerator[str, None]]


class FeedEnded(Exception):
    """Nothing comes any more: this process stops, or the job cannot be shown."""


class Watch:
    """One who watches a job."""

    def __init__(self, watched: "_Watched", looks: int) -> None:
        self._watched = watched
        #: How many there were before it came.
        self._looks = looks
        self._seen = 0

    async def next(self) -> Shown | None:
        """The job as it is, once that is news to this one: the first time, as a look has seen it that began after this
        one came. None: there is none any more.

        Raises FeedEnded.
        """
        watched = self._watched
        while watched.turn == self._seen or watched.look <= self._looks:
            if watched.ended:
                raise FeedEnded
            await watched.news.wait()
        self._seen = watched.turn
        return watched.shown


class Feed:
    """Changes of jobs, for this process. It begins with the first one who watches."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._look: Look | None = None
        self._watched: dict[str, _Watched] = {}
        #: Which to look at.
        self._changed = _Marked()
        self._waiting = _Marked()
        self._moved = _Marked()
        #: That have begun.
        self._looks = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False

    def show(self, look: Look) -> None:
        """How jobs are looked at. To be said before anybody watches."""
        self._look = look

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Watch a job, if there is one. Raises FeedEnded."""
        if self._ended:
            raise FeedEnded
        if not self._tasks:
            loops = (
                self._hear(),
                self._see(self._changed, BATCH),
                self._see(self._waiting, WAITING_BATCH),
                self._see_places(),
            )
            self._tasks = [asyncio.create_task(each) for each in loops]
        watched = self._watched.setdefault(job_id, _Watched())
        watched.watches += 1
        self._mark(job_id)
        try:
            yield Watch(watched, self._looks)
        finally:
            watched.watches -= 1
            if not watched.watches and self._watched.get(job_id) is watched:
                self._forget(job_id)

    async def aclose(self) -> None:
        """All who watch are told that it has ended, at once."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        for job_id in list(self._watched):
            self._fail(job_id)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _mark(self, job_id: str) -> None:
        shown = self._watched[job_id].shown
        runs = shown is not None and shown.line is None
        (self._changed if runs else self._waiting).add(job_id)

    def _forget(self, job_id: str) -> None:
        self._watched.pop(job_id).stop()
        for marked in (self._changed, self._waiting, self._moved):
            marked.drop(job_id)

    def _fail(self, job_id: str) -> None:
        watched = self._watched[job_id]
        self._forget(job_id)
        watched.end()

    # ---------------------------------------------------------------- what is told

    async def _hear(self) -> None:
        while True:
            try:
                async with aclosing(self._listen()) as payloads:
                    async for payload in payloads:
                        self._told(payload)
            except (psycopg.Error, OSError) as error:
                log.warning("feed_lost", error=str(error))
            await asyncio.sleep(AGAIN_S)

    def _told(self, payload: str) -> None:
        if not payload:
            # It listens (again): what was said before, nobody has heard.
            for job_id in self._watched:
                self._mark(job_id)
            return
        job_id, _, rest = payload.partition(" ")
        version, _, line = rest.partition(" ")
        if not (version.isascii() and version.isdecimal()):
            log.warning("feed_payload_unknown", payload=payload[:100])
            return
        watched = self._watched.get(job_id)
        if watched is not None and (watched.shown is None or watched.shown.version < int(version)):
            self._mark(job_id)
        if line:
            for waiting_id, waiting in self._watched.items():
                if waiting.shown is not None and waiting.shown.line == line:
                    self._place_later(waiting_id, waiting)

    def _place_later(self, job_id: str, watched: "_Watched") -> None:
        if watched.timer is None:
            loop = asyncio.get_running_loop()
            watched.timer = loop.call_at(max(watched.looked_at + PLACE_S, loop.time()), self._place_now, job_id)

    def _place_now(self, job_id: str) -> None:
        self._watched[job_id].timer = None
        self._moved.add(job_id)

    # ---------------------------------------------------------------- what is seen

    async def _see(self, marked: "_Marked", most: int) -> None:
        together = most
        while True:
            batch = await marked.take(together)
            for job_id in batch:
                # Its place is looked at with it.
                self._moved.drop(job_id)
            together = most if await self._try(batch) else 1

    async def _see_places(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._moved.take(1)
            begun = loop.time()
            await self._try(batch)
            await asyncio.sleep(RESTS * (loop.time() - begun))

    async def _try(self, batch: Sequence[str]) -> bool:
        """Returns whether they could be seen together; else they are marked again, unless one alone could not."""
        try:
            await self._see_these(batch)
        except _PASSING as error:
            log.warning("look_failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
            self._again(batch)
            await asyncio.sleep(AGAIN_S)
        except Exception:
            # A defect, or a row that nobody can read. It must not keep those beside it from being shown.
            log.exception("look_crashed", jobs=len(batch))
            if len(batch) > 1:
                self._again(batch)
            elif batch[0] in self._watched:
                self._fail(batch[0])
            return False
        return True

    async def _see_these(self, batch: Sequence[str]) -> None:
        assert self._look is not None, "show() comes first"
        self._looks += 1
        look = self._looks
        found = await self._look(batch)
        now = asyncio.get_running_loop().time()
        for job_id in batch:
            # Nobody may be left who watches it.
            if (watched := self._watched.get(job_id)) is not None:
                watched.looked_at = now
                watched.publish(found.get(job_id), look)

    def _again(self, batch: Sequence[str]) -> None:
        for job_id in batch:
            if job_id in self._watched:
                self._mark(job_id)


class _Marked:
    """Ids of jobs that wait to be looked at, each once; the one that has waited for longest comes first."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, job_id: str) -> None:
        self._ids[job_id] = None
        self._some.set()

    def drop(self, job_id: str) -> None:
        self._ids.pop(job_id, None)

    async def take(self, most: int) -> Sequence[str]:
        """At least one, as soon as there is one. It may be marked again while it is looked at."""
        while not self._ids:
            self._some.clear()
            await self._some.wait()
        taken = list(self._ids)[:most]
        for job_id in taken:
            del self._ids[job_id]
        return taken


class _Watched:
    """A job that somebody watches."""

    def __init__(self) -> None:
        self.watches = 0
        #: As it was seen last; None before that, and when it is deleted.
        self.shown: Shown | None = None
        #: Which look that was.
        self.look = 0
        #: Grows with each news.
        self.turn = 0
        #: Set, and replaced, with each look.
        self.news = asyncio.Event()
        self.ended = False
        self.looked_at = 0.0
        #: Runs until its place is looked at.
        self.timer: asyncio.TimerHandle | None = None

    def publish(self, shown: Shown | None, look: int) -> None:
        if look < self.look:
            # Another loop began later and was done earlier.
            return
        self.look = look
        if not self.turn or shown != self.shown:
            self.shown = shown
            self.turn += 1
        self._tell()

    def end(self) -> None:
        self.ended = True
        self._tell()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()
