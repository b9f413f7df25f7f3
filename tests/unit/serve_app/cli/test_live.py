"""Watching all jobs: how often is asked, and what a service that does not answer for a moment means."""

from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.cli.live import follow
from serve_app.client import PATIENCE_S, ApiError, Unreachable

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
