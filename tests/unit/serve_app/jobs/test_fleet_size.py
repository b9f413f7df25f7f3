"""How many machines the work is worth."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingConfig

from serve_app.jobs.fleet_size import CALLS_PER_REPLICA, Capacity, machines, window

SECONDS = st.floats(0, 1e5)
COUNTS = st.integers(0, 10_000)
MOST = st.integers(1, 50)


@pytest.mark.parametrize(
    ("backlog", "run_s", "start_s", "expected"),
    [
        (0, 25, 300, 1),
        (1, 25, 300, 1),
        # The first is done with all of them soon after a second would be ready.
        (24, 25, 300, 1),
        (25, 25, 300, 2),
        (100, 25, 300, 5),
        # A job that takes longer than two starts: one machine each.
        (1, 900, 300, 1),
        (3, 900, 300, 3),
        (4, 151, 300, 2),
        (1000, 151, 300, 20),
        # What is measured may be nothing.
        (5, 0, 0, 1),
        (5, 1, 0, 5),
    ],
)
def test_each_machine_gets_about_two_starts_worth_of_work(
    backlog: int, run_s: float, start_s: float, expected: int
) -> None:
    assert machines(backlog=backlog, run_s=run_s, start_s=start_s, running=0, most=20) == expected


def test_replicas_that_run_are_used_while_there_is_a_job_for_each() -> None:
    found = [machines(backlog=n, run_s=25, start_s=300, running=3, most=4) for n in range(6)]
    assert found == [1, 1, 2, 3, 3, 3]


@given(backlog=COUNTS, more=COUNTS, run_s=SECONDS, start_s=SECONDS, running=st.integers(0, 60), most=MOST)
def test_it_is_bounded_and_grows_with_the_backlog(
    backlog: int, more: int, run_s: float, start_s: float, running: int, most: int
) -> None:
    target = machines(backlog=backlog, run_s=run_s, start_s=start_s, running=running, most=most)
    assert 1 <= target <= most
    assert target >= min(running, backlog, most)
    # No machine without a job.
    assert target <= max(1, backlog)
    grown = machines(backlog=backlog + more, run_s=run_s, start_s=start_s, running=running, most=most)
    assert grown >= target


@given(run_s=SECONDS, start_s=SECONDS, running=st.integers(0, 60), most=MOST)
def test_a_lone_job_is_one_machine(run_s: float, start_s: float, running: int, most: int) -> None:
    assert machines(backlog=1, run_s=run_s, start_s=start_s, running=running, most=most) == 1


@given(backlog=st.integers(1, 1000), run_s=st.floats(1, 1e4), start_s=st.floats(1, 1e4))
def test_the_last_machine_works_for_twice_as_long_as_it_starts_or_has_a_job(
    backlog: int, run_s: float, start_s: float
) -> None:
    target = machines(backlog=backlog, run_s=run_s, start_s=start_s, running=0, most=10**9)
    # With one less, each of them would have had at least two starts' worth.
    assert target == 1 or backlog * run_s > (target - 1) * max(2 * start_s, run_s) * (1 - 1e-9)


@given(most=MOST, target=MOST, slots=st.integers(2, 5))
def test_serve_makes_of_the_window_as_many_replicas(most: int, target: int, slots: int) -> None:
    """Its policy: calls in flight by ``target_ongoing_requests``, rounded up, and not more than the most."""
    target = min(target, most)
    calls = window(target, Capacity(running=0, most=most, slots=slots))
    config = AutoscalingConfig(target_ongoing_requests=CALLS_PER_REPLICA, max_replicas=most)
    assert min(ceil(calls / config.get_target_ongoing_requests()), config.max_replicas) == target


def test_at_the_most_there_are_every_slot_is_filled_and_one_waits() -> None:
    assert window(4, Capacity(running=0, most=4, slots=3)) == 13
    assert window(1, Capacity(running=0, most=1, slots=3)) == 4


class Fleet:
    """Serve and its replicas, second by second: up at once, down after fewer were wanted for the whole delay."""

    DELAY_S, STEP_S = 300, 10

    def __init__(self, jobs: int, run_s: float, start_s: float, most: int) -> None:
        self.left = float(jobs)
        self.run_s, self.start_s, self.most = run_s, start_s, most
        #: When each replica can work, by the clock.
        self.ready_at: list[float] = []
        self.now, self.starts, self.fewer_since = 0.0, 0, 0.0

    @property
    def running(self) -> int:
        return sum(at <= self.now for at in self.ready_at)

    def step(self) -> None:
        capacity = Capacity(running=self.running, most=self.most, slots=3)
        backlog = ceil(self.left)
        target = machines(backlog=backlog, run_s=self.run_s, start_s=self.start_s, running=self.running, most=self.most)
        wanted = min(ceil(min(window(target, capacity), backlog) / CALLS_PER_REPLICA), self.most)
        there = len(self.ready_at)
        if wanted >= there:
            self.fewer_since = self.now
            self.starts += wanted - there
            self.ready_at += [self.now + self.start_s] * (wanted - there)
        elif self.now - self.fewer_since >= self.DELAY_S:
            # Those that are not ready yet go first.
            self.ready_at = sorted(self.ready_at)[:wanted]
            self.fewer_since = self.now
        self.left = max(0.0, self.left - min(self.running, backlog) * self.STEP_S / self.run_s)
        self.now += self.STEP_S


@given(jobs=st.integers(1, 200), run_s=st.floats(20, 600), start_s=st.floats(20, 1200), most=st.integers(1, 12))
def test_a_burst_starts_each_machine_once(jobs: int, run_s: float, start_s: float, most: int) -> None:
    fleet = Fleet(jobs, run_s, start_s, most)
    fleet.step()
    first = fleet.starts
    assert first <= machines(backlog=jobs, run_s=run_s, start_s=start_s, running=0, most=most)
    for _ in range(100_000):
        if not fleet.left:
            break
        fleet.step()
    assert fleet.left == 0
    assert fleet.starts == first
