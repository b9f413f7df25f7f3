"""How a terminal shows that something goes on: live bars for people, plain lines for logs. Always on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from serve_app.client import ENDED, Job, OnBytes

#: Without a terminal, a line for so many per cent.
_STEP = 10
#: Without a terminal, seconds between two lines of one step of a long transfer.
_SAY_S = 10.0


@contextmanager
def showing_job(console: Console) -> Iterator[Callable[[Job], None]]:
    """What the body calls with each change of a job."""
    if not console.is_terminal:
        lines = Lines()

        def tell(job: Job) -> None:
            if line := lines.of(job):
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("queued", total=100, note="")

        def show(job: Job) -> None:
            bars.update(task, description=escape(stage_of(job)), completed=job["progress"], note=escape(note_of(job)))

        yield show


@contextmanager
def showing_bytes(console: Console, label: str) -> Iterator[OnBytes]:
    """What the body calls with each piece of a transfer. Shown on a terminal only: it is over in seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(escape(label), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def showing_steps(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What the body calls, from one thread at a time, while it copies files for minutes or hours: what is done with
    which file, and the bytes of it, done and in all."""
    if not console.is_terminal:
        yield _Steps(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        shown = ""

        def show(step: str, done: int, total: int) -> None:
            nonlocal shown
            if step != shown:
                shown = step
                bars.reset(task, description=escape(step), total=total)
            bars.update(task, completed=done)

        yield show


def stage_of(job: Job) -> str:
    """What happens to the job now, in words."""
    if job["status"] in ENDED:
        return job["status"]
    return job["stage"].replace("_", " ").replace("gpu", "GPU")


def note_of(job: Job) -> str:
    """Place in the line, time to wait, attempts."""
    notes = []
    if (ahead := job.get("queue_position")) is not None:
        notes.append(f"{ahead} ahead" if ahead else "next in line")
    if (eta := job.get("eta_seconds")) is not None:
        notes.append(f"about {duration(eta)} to go")
    if job["attempt"] > 1:
        notes.append(f"attempt {job['attempt']}")
    if job["status"] == "queued" and "error_message" in job:
        notes.append(f"again after: {job['error_message']}")
    return ", ".join(notes)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Lines:
    """A job's changes as lines of text, as many as are worth one."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def of(self, job: Job) -> str:
        """The next line; empty: nothing to tell."""
        now = (stage_of(job), int(job["progress"]) // _STEP)
        if now == self._last:
            return ""
        self._last = now
        note = note_of(job)
        return f"{job['job_id']} {now[0]} {job['progress']:.0f}%" + (f" ({note})" if note else "")


class _Steps:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = ""
        self._said = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step == self._step and now - self._said < _SAY_S:
            return
        self._step, self._said = step, now
        line = f"{step} {done / max(total, 1):.0%}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
