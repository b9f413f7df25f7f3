"""Users share the GPUs: equal run times, equal starts; unequal ones, equal slots.

Seen before: of four users on seven slots, the one who had posted last got half a share for as long as the others had
jobs, since at a tie the older job won; on one slot, he got nothing.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Started
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import ended, execute, fetch, jobs_of, lease_of
from tests.parts.serve_app.jobs.turns import take_turns

WINDOWS, USERS = range(1, 17), (*range(2, 21), 33, 50)
#: Of all those, for the database itself: fewer slots than users, as many, more, and many times as many users.
SOME = [(1, 2), (2, 3), (4, 4), (7, 4), (8, 3), (3, 20)]

#: Seconds that a job of this user takes.
RunTime = Callable[[int], float]


def equal(_: int) -> float:
    return 10.0


def unequal(seed: int) -> RunTime:
    """Some users' jobs take ten times as long, and no two jobs the same time."""
    chance = random.Random(seed)
    return lambda user: (1 + 9 * (user % 3 == 0)) * chance.uniform(0.5, 1.5)


class Slots:
    """What runs, and who has started how often; users are numbers, by who posted first."""

    def __init__(self, users: int, run_time: RunTime) -> None:
        self.starts = Counter(dict.fromkeys(range(users), 0))
        self.held = Counter(dict.fromkeys(range(users), 0))
        self._run_time = run_time
        self._now = 0.0
        #: When, in which order, whose, which job.
        self._ends: list[tuple[float, int, int, str]] = []

    def start(self, user: int, job_id: str = "") -> None:
        self.starts[user] += 1
        self.held[user] += 1
        heapq.heappush(self._ends, (self._now + self._run_time(user), self.starts.total(), user, job_id))

    def end(self) -> str:
        """The job that ends first."""
        self._now, _, user, job_id = heapq.heappop(self._ends)
        self.held[user] -= 1
        return job_id

    def check(self, run_time: RunTime) -> None:
        shares = self.starts if run_time is equal else self.held
        assert max(shares.values()) - min(shares.values()) <= 1, shares


@pytest.mark.parametrize("seed", [None, 1])
def test_shares_are_fair_whatever_the_window_and_however_many_share_it(seed: int | None) -> None:
    """Of the rule, as ``turns.py`` has it; that the database keeps to it, the store's state machine proves."""
    for window in WINDOWS:
        for users in USERS:
            run_time = equal if seed is None else unequal(seed)
            slots, served = Slots(users, run_time), {}
            everybody = {user: [user] * window for user in range(users)}
            for _ in range(window + users):
                room = window - slots.held.total()
                for user in take_turns(everybody, slots.held, served, room, lambda user: (user,)):
                    slots.start(user)
                slots.check(run_time)
                slots.end()


async def posted(engine: AsyncEngine, users: int, each: int) -> None:
    """Jobs that wait for a GPU, posted user after user."""
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, user_id, inputs, created_at)
        SELECT 'job ' || u || ' ' || n, 'ltx2', 'queued', 'user ' || u, '{}',
               now() + make_interval(secs => u * 1000 + n)
          FROM generate_series(0, :users - 1) u, generate_series(1, :each) n
        """,
        users=users,
        each=each,
    )


def number(user: str) -> int:
    return int(user.removeprefix("user "))


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(("window", "users"), SOME)
async def test_the_database_shares_fairly(
    store: JobStore, engine: AsyncEngine, window: int, users: int, seed: int | None
) -> None:
    run_time = equal if seed is None else unequal(seed)
    ends = users + window if seed is None else 12
    await posted(engine, users, each=ends + window)
    slots = Slots(users, run_time)
    for _ in range(ends):
        for job in jobs_of(await store.claim_to_run("ltx2", window)):
            slots.start(number(job.user_id), job.id)
        slots.check(run_time)
        await ended(engine, slots.end())


async def test_a_user_who_comes_later_catches_up_in_slots_and_then_shares(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, 1, each=40)
    slots = Slots(2, equal)
    for job in jobs_of(await store.claim_to_run("ltx2", 6)):
        slots.start(0, job.id)
    await posted_by(engine, "user 1", 20)
    starts = []
    for _ in range(9):
        await ended(engine, slots.end())
        (job,) = jobs_of(await store.claim_to_run("ltx2", 6))
        starts.append(number(job.user_id))
        slots.start(starts[-1], job.id)
    assert starts == [1, 1, 1, 0, 0, 0, 1, 1, 1]


async def posted_by(engine: AsyncEngine, user: str, jobs: int) -> None:
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, user_id, inputs, created_at)
        SELECT :user || n, 'ltx2', 'queued', :user, '{}', now() + make_interval(secs => n)
          FROM generate_series(1, :jobs) n
        """,
        user=user,
        jobs=jobs,
    )


async def test_who_was_served_a_moment_ago_in_the_same_claim_is_not_served_again_first(
    store: JobStore, engine: AsyncEngine
) -> None:
    """His turn before may be older than that of somebody who holds a slot already; the one he has just had is not."""
    await posted(engine, 2, each=4)
    (first,) = jobs_of(await store.claim_to_run("ltx2", 1))
    await ended(engine, first.id)
    (second,) = jobs_of(await store.claim_to_run("ltx2", 1))
    assert [number(job.user_id) for job in (first, second)] == [0, 1]
    assert [number(job.user_id) for job in jobs_of(await store.claim_to_run("ltx2", 4))] == [0, 1, 0]


async def test_intake_is_shared_in_the_same_way(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, 4, each=20)
    await execute(engine, "UPDATE jobs SET inputs = NULL")
    slots = Slots(4, equal)
    for _ in range(15):
        for job in jobs_of(await store.claim_for_intake(7 - slots.held.total(), share=4)):
            slots.start(number(job.user_id), job.id)
        slots.check(equal)
        await ended(engine, slots.end())


async def test_a_users_turn_at_one_model_is_not_that_at_another(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, 2, each=2)
    await execute(engine, "UPDATE jobs SET model = 'wav2lip' WHERE id LIKE '% 2'")
    for model in ("ltx2", "wav2lip"):
        (first,) = jobs_of(await store.claim_to_run(model, 1))
        assert first.user_id == "user 0"
        await ended(engine, first.id)
        (second,) = jobs_of(await store.claim_to_run(model, 1))
        assert second.user_id == "user 1"


async def test_priority_buys_nobody_elses_turn(store: JobStore, engine: AsyncEngine) -> None:
    """It orders the jobs of one user. Else whoever asks for 10 would have every odd slot, and a single one for ever."""
    await posted(engine, 2, each=10)
    await execute(engine, "UPDATE jobs SET priority = 10 WHERE user_id = 'user 0'")
    order = []
    for _ in range(6):
        (job,) = jobs_of(await store.claim_to_run("ltx2", 1))
        order.append(number(job.user_id))
        await ended(engine, job.id)
    assert order == [0, 1, 0, 1, 0, 1]


async def test_turns_do_not_pile_up(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, 3, each=10)
    for _ in range(5):
        for job in jobs_of(await store.claim_to_run("ltx2", 6)):
            await store.start(Started(lease=lease_of(job)))
            await ended(engine, job.id)
    assert len(await fetch(engine, "SELECT 1 FROM turns")) == 3


def test_the_rule_of_before_was_not_fair() -> None:
    """What the tests above would have said: at a tie the older job won."""
    slots = Slots(4, equal)

    def oldest_first(room: int) -> Sequence[int]:
        held, chosen = Counter(slots.held), []
        for _ in range(room):
            chosen.append(min(range(4), key=lambda user: (held[user], user)))
            held[chosen[-1]] += 1
        return chosen

    for _ in range(60):
        for user in oldest_first(7 - slots.held.total()):
            slots.start(user)
        slots.end()
    # 7 slots, 4 users: the last held one while the others held two.
    assert slots.starts[3] < 0.65 * slots.starts[0]
