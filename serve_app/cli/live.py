"""The newest jobs as they go (``list --watch``): a live table for people, a line with each change for a pipe."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.text import Text

from serve_app.cli import display
from serve_app.cli.progress import Lines
from serve_app.cli.terminal import Session
from serve_app.client import ENDED, PAGE, PATIENCE_S, ApiError, Job, Unreachable

#: Newest first.
Jobs = Sequence[Job]
#: Told of each look: the jobs as they were seen last, and why they are not fresh, if they are not.
Show = Callable[[Jobs, str], None]


class Newest:
    """The newest jobs, and of those behind them the ones that were seen unfinished, until their end was seen as well:
    as far down as one request reaches."""

    def __init__(self, ask: Callable[[int], Jobs], limit: int) -> None:
        """``ask`` answers with the newest so many, of which ``limit`` are watched whatever they do."""
        self._ask = ask
        self._limit = limit
        self._unfinished: frozenset[str] = frozenset()

    def __call__(self) -> Jobs:
        found = self._ask(max(self._limit, PAGE))
        seen = [job for place, job in enumerate(found) if place < self._limit or job["job_id"] in self._unfinished]
        self._unfinished = _unfinished(seen)
        return seen


def _unfinished(found: Jobs) -> frozenset[str]:
    return frozenset(job["job_id"] for job in found if job["status"] not in ENDED)


def follow(
    ask: Callable[[], Jobs],
    show: Show,
    every_s: float,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Look again and again, until something is raised: a restart of the service that takes no longer than
    ``PATIENCE_S`` is outlived, once it has answered.

    Raises:
        ApiError, Unreachable
    """
    seen: Jobs | None = None
    answered = clock()
    while True:
        wait_s = every_s
        try:
            seen = ask()
        except (ApiError, Unreachable) as error:
            refused = isinstance(error, ApiError) and not error.passing
            if seen is None or refused or clock() - answered > PATIENCE_S:
                raise
            if isinstance(error, ApiError):
                wait_s = max(every_s, error.retry_after_s or 0)
            show(seen, str(error))
        else:
            answered = clock()
            show(seen, "")
        pause(wait_s)


@contextmanager
def showing_jobs(session: Session) -> Iterator[Show]:
    """What :func:`follow` shows by. What is not fresh is said on stderr where stdout is for a program."""
    if session.json or not session.out.is_terminal:
        yield _Changes(session)
        return
    with Live(console=session.out, auto_refresh=False) as live:
        before: Jobs = ()

        def show(found: Jobs, stale: str) -> None:
            nonlocal before
            for line in _left(before, found):
                live.console.print(line, style="dim", markup=False, soft_wrap=True)
            before = found
            note = Text(stale or "Ctrl-C ends this, and no job.", style="yellow" if stale else "dim")
            live.update(Group(display.jobs(found, live=True), note), refresh=True)

        yield show


def _left(before: Jobs, found: Jobs) -> Sequence[str]:
    """A line for each job whose end is not going to be seen."""
    gone = _unfinished(before) - {job["job_id"] for job in found}
    # Too old, deleted, or no longer of the status that is asked for.
    return [f"{job_id} is no longer in this list: video-api status {job_id}" for job_id in sorted(gone)]


class _Changes:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: dict[str, Job] = {}
        self._lines: dict[str, Lines] = {}
        self._stale = ""

    def __call__(self, found: Jobs, stale: str) -> None:
        if stale and not self._stale:
            self._session.err.print(stale, markup=False, soft_wrap=True)
        self._stale = stale
        for line in _left(tuple(self._seen.values()), found):
            self._session.err.print(line, markup=False, soft_wrap=True)
        # The newest last, as what comes later does.
        for job in reversed(found):
            job_id = job["job_id"]
            if job == self._seen.get(job_id):
                continue
            if self._session.json:
                print(json.dumps(job), flush=True)
            elif line := self._lines.setdefault(job_id, Lines()).of(job):
                print(line, flush=True)
        self._seen = {job["job_id"]: job for job in found}
        self._lines = {job_id: lines for job_id, lines in self._lines.items() if job_id in self._seen}
