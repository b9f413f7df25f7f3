"""Watching all jobs: how often is asked, and what a service that does not answer for a moment means."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from serve_app.cli.live import Newest, follow, showing_jobs
from serve_app.cli.terminal import Session
from serve_app.client import PAGE, PATIENCE_S, ApiError, Job, Unreachable

GONE = Unreachable("http://api", "gone")


class Enough(Exception):
    """The test has seen what it wants."""


class Watched:
    """A service that answers by a list; a clock that goes on when somebody waits."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)
        self.now = 0.0
        self.waits: list[float] = []
        self.shown: list[tuple[Any, str]] = []

    def ask(self) -> Any:
        answer = next(self._answers, Enough())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def show(self, jobs: Any, why: str) -> None:
        self.shown.append((jobs, why))

    def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def run(self, raised: type[Exception]) -> None:
        with pytest.raises(raised):
            follow(
                self.ask, lambda jobs, why: self.shown.append((jobs, why)), 2, pause=self.pause, clock=lambda: self.now
            )


def test_each_look_is_shown() -> None:
    watched = Watched([["a"], ["b", "a"]])
    watched.run(Enough)
    assert watched.shown == [(["a"], ""), (["b", "a"], "")]
    assert watched.waits == [2, 2]


def test_a_restart_is_outlived_and_said() -> None:
    watched = Watched([["a"], GONE, ApiError(503, "unavailable", "Wait."), ["b"]])
    watched.run(Enough)
    assert [jobs for jobs, _ in watched.shown] == [["a"], ["a"], ["a"], ["b"]]
    assert [bool(why) for _, why in watched.shown] == [False, True, True, False]


def test_patience_ends_and_begins_anew_with_each_answer() -> None:
    tries = int(PATIENCE_S / 2)
    watched = Watched([["a"], *[GONE] * tries, ["b"], *[GONE] * (tries + 2)])
    watched.run(Unreachable)
    assert [jobs for jobs, why in watched.shown if not why] == [["a"], ["b"]]


def test_who_is_told_to_wait_waits() -> None:
    watched = Watched([["a"], ApiError(429, "rate_limited", "Slow.", 17), ["a"]])
    watched.run(Enough)
    assert watched.waits == [2, 17, 2]


@pytest.mark.parametrize(
    "answers",
    [
        [GONE],
        [ApiError(503, "unavailable", "Wait.")],
        [["a"], ApiError(401, "unauthorized", "No.")],
        [["a"], ApiError(500, "internal_error", "Broken.")],
    ],
)
def test_what_does_not_pass_ends_it(answers: list[Any]) -> None:
    watched = Watched(answers)
    watched.run(Unreachable if answers == [GONE] else ApiError)
    assert watched.waits == [2] * (len(answers) - 1)


def a_job(job_id: str, status: str) -> Job:
    return {
        "job_id": job_id,
        "status": status,
        "stage": "generating",
        "progress": 0,
        "attempt": 1,
        "created_at": "2026-01-01T00:00:00Z",
    }


def test_what_was_seen_unfinished_is_seen_to_its_end_though_newer_ones_come() -> None:
    wanted: list[int] = []
    there = [a_job("begun", "processing"), a_job("done", "completed"), a_job("before", "processing")]

    def ask(limit: int) -> Sequence[Job]:
        wanted.append(limit)
        return there[:limit]

    def look() -> list[str]:
        return [f"{job['job_id']} {job['status']}" for job in newest()]

    newest = Newest(ask, 2)
    assert look() == ["begun processing", "done completed"]
    there[:0] = [a_job("new", "queued"), a_job("newer", "failed")]
    assert look() == ["new queued", "newer failed", "begun processing"]
    there[2] = a_job("begun", "completed")
    assert look() == ["new queued", "newer failed", "begun completed"]
    assert look() == ["new queued", "newer failed"]
    # One request, however many are watched.
    assert wanted == [PAGE] * 4


def test_who_wants_more_than_a_page_gets_more() -> None:
    there = [a_job(str(number), "queued") for number in range(PAGE + 10)]
    assert len(Newest(lambda limit: there[:limit], PAGE + 5)()) == PAGE + 5


@pytest.mark.parametrize("terminal", [False, True])
def test_one_that_leaves_before_its_end_is_said_once(terminal: bool) -> None:
    out, err = StringIO(), StringIO()
    consoles = {"out": Console(file=out, force_terminal=terminal, width=200), "err": Console(file=err, width=200)}
    with showing_jobs(Session(address=lambda: ("", ""), json=False, **consoles)) as show:
        show([a_job("begun", "processing"), a_job("done", "completed")], "")
        show([a_job("new", "queued")], "")
        show([a_job("new", "queued")], "")
    said = (out if terminal else err).getvalue()
    assert said.count("begun is no longer in this list: video-api status begun") == 1
    assert "done is no longer" not in said
