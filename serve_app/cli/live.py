"""All of one's jobs as they go (``list --watch``): a live table for people, a line with each change for a pipe."""

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
from serve_app.client import PATIENCE_S, ApiError, Job, Unreachable

#: Newest first.
Jobs = Sequence[Job]
#: Told of each look: the jobs as they were seen last, and why they are not fresh, if they are not.
Show = Callable[[Jobs, str], None]


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

        def show(found: Jobs, stale: str) -> None:
            note = Text(stale or "Ctrl-C ends this, and no job.", style="yellow" if stale else "dim")
            live.update(Group(display.jobs(found, live=True), note), refresh=True)

        yield show


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
