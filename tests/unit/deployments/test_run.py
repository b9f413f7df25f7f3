"""A run's reports against a head that answers, is silent, comes back or wants the run to stop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

import pytest

from deployments import run as run_module
from deployments.contract import Lease, Progress, Report, Started, Stopped, Task, Verdict
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.run import Run, RunStopped

LEASE = Lease(job_id="job-1", token="t", attempt=1)


class Head:
    """Answers from ``answers`` (a verdict, an error to raise or an event to wait for), then always ``GO_ON``."""

    def __init__(self, *answers: Verdict | Exception | asyncio.Event) -> None:
        self.answers = deque(answers)
        self.reports: list[Report] = []
        self._heard = asyncio.Event()

    async def report(self, report: Report) -> Verdict:
        self.reports.append(report)
        self._heard.set()
        answer = self.answers.popleft() if self.answers else Verdict.GO_ON
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return Verdict.GO_ON
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def renew(self, task: Task) -> Task:
        answer = self.answers.popleft() if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return task.model_copy(update={"output_url": f"{task.output_url}?renewed"})

    async def until(self, condition: Callable[[list[Report]], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(self.reports):
                self._heard.clear()
                await self._heard.wait()


def task(*, lease_s: float = 30, timeout_s: float = 60) -> Task:
    return Task(
        lease=LEASE,
        model="ltx2",
        params={},
        inputs={},
        output_url="http://127.0.0.1/out",
        lease_s=lease_s,
        timeout_s=timeout_s,
    )


@pytest.fixture(autouse=True)
def _frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "REPORT_INTERVAL_S", 0.02)
    monkeypatch.setattr(run_module, "AGAIN_S", 0.01)


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
async def beating(head: Head) -> AsyncIterator[Run]:
    run = Run(task(), head)
    heartbeat = asyncio.create_task(run.heartbeat())
    yield run
    heartbeat.cancel()
    await asyncio.wait({heartbeat})


@pytest.mark.parametrize(
    ("verdict", "ours"), [(Verdict.GO_ON, True), (Verdict.CANCELLED, False), (Verdict.LEASE_LOST, False)]
)
async def test_work_begins_only_when_the_head_says_so(verdict: Verdict, ours: bool) -> None:
    head = Head(verdict)
    run = Run(task(), head)
    assert await run.start() is ours
    assert head.reports == [Started(lease=LEASE)]
    assert run.verdict is verdict


async def test_a_head_that_is_away_for_a_moment_is_asked_again() -> None:
    head = Head(ConnectionError("gone"), ConnectionError("gone"))
    assert await Run(task(), head).start()
    assert len(head.reports) == 3


async def test_a_job_is_not_begun_once_its_lease_must_have_expired() -> None:
    head = Head(*(ConnectionError("gone") for _ in range(100)))
    run = Run(task(lease_s=0.2), head)
    assert not await run.start()
    assert run.verdict is Verdict.LEASE_LOST


async def test_a_task_begins_with_fresh_links() -> None:
    head = Head(ConnectionError("gone"), ConnectionError("gone"))
    assert (await Run(task(), head).renewed()).output_url == "http://127.0.0.1/out?renewed"


async def test_a_head_that_is_away_keeps_no_task_from_its_old_links() -> None:
    head = Head(*(ConnectionError("gone") for _ in range(100)))
    assert (await Run(task(), head).renewed(tries=1)).output_url == "http://127.0.0.1/out"


async def test_heartbeat_tells_the_newest_progress(head: Head, beating: Run) -> None:
    beating.step("generating", 40)
    await head.until(lambda reports: reports[-1:] == [Progress(lease=LEASE, stage="generating", percent=40)])


async def test_progress_never_goes_back_and_ends_at_a_hundred(head: Head, beating: Run) -> None:
    beating.step("generating", 40)
    beating.step("encoding", 20)
    beating.hurry()
    await head.until(lambda reports: reports[-1:] == [Progress(lease=LEASE, stage="encoding", percent=40)])
    beating.step("encoding", 1000)
    beating.hurry()
    await head.until(lambda reports: reports[-1:] == [Progress(lease=LEASE, stage="encoding", percent=100)])


async def test_nothing_new_is_said_again_only_to_keep_the_lease() -> None:
    """A third of the lease time is shorter than a report interval here, so every interval has a report."""
    head = Head()
    run = Run(task(lease_s=0.03), head)
    heartbeat = asyncio.create_task(run.heartbeat())
    await head.until(lambda reports: len(reports) == 3)
    heartbeat.cancel()
    assert len(set(map(repr, head.reports))) == 1


@pytest.mark.parametrize("verdict", [Verdict.CANCELLED, Verdict.LEASE_LOST])
async def test_a_verdict_to_stop_ends_waiting_and_the_next_step(head: Head, beating: Run, verdict: Verdict) -> None:
    head.answers.append(verdict)
    beating.hurry()
    with pytest.raises(RunStopped):
        await beating.unless_stopped(asyncio.Event().wait())
    with pytest.raises(RunStopped):
        beating.step("generating", 50)
    assert beating.verdict is verdict


async def test_hurry_asks_at_once(head: Head) -> None:
    """With a lease this long nothing else would bring a second report."""
    run = Run(task(lease_s=1e6), head)
    heartbeat = asyncio.create_task(run.heartbeat())
    await head.until(lambda reports: len(reports) == 1)
    run.hurry()
    await head.until(lambda reports: len(reports) == 2)
    heartbeat.cancel()


async def test_a_run_goes_on_while_nobody_answers(head: Head) -> None:
    """What could not be told is told at the next interval: with a lease this long nothing else would bring it about."""
    head.answers.extend([Verdict.GO_ON, ConnectionError("gone"), ConnectionError("gone")])
    run = Run(task(lease_s=1e6), head)
    heartbeat = asyncio.create_task(run.heartbeat())
    await head.until(lambda reports: len(reports) == 1)
    run.hurry()
    await head.until(lambda reports: len(reports) == 4)
    run.step("generating", 1)
    assert run.verdict is Verdict.GO_ON
    heartbeat.cancel()


async def test_a_report_that_hangs_does_not_hold_up_the_next(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle whose other end vanished may never return; the lease would run out meanwhile."""
    monkeypatch.setattr(run_module, "REPORT_TIMEOUT_S", 0.05, raising=False)
    head.answers.append(asyncio.Event())
    run = Run(task(), head)
    heartbeat = asyncio.create_task(run.heartbeat())
    await head.until(lambda reports: len(reports) >= 2)
    heartbeat.cancel()


async def test_the_end_is_told_although_the_first_try_hangs(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "REPORT_TIMEOUT_S", 0.05, raising=False)
    head.answers.append(asyncio.Event())
    async with asyncio.timeout(30):
        await Run(task(), head).finish(Stopped(lease=LEASE))
    assert head.reports == [Stopped(lease=LEASE)] * 2


async def test_the_end_is_told_until_somebody_hears_it(head: Head) -> None:
    head.answers.extend([ConnectionError("gone"), ConnectionError("gone")])
    await Run(task(), head).finish(Stopped(lease=LEASE))
    assert head.reports == [Stopped(lease=LEASE)] * 3


async def test_out_of_time_is_a_transient_fault(head: Head) -> None:
    run = Run(task(timeout_s=-1), head)
    with pytest.raises(Fault, match="took longer") as caught:
        run.step("generating", 10)
    assert (caught.value.code, caught.value.transient) == ("timed_out", True)


async def test_unless_stopped_hands_on_results_and_errors(head: Head) -> None:
    run = Run(task(), head)

    async def result() -> int:
        return 7

    async def error() -> None:
        raise Fault(FailureCode.STORAGE_UNAVAILABLE, "no", transient=True)

    assert await run.unless_stopped(result()) == 7
    with pytest.raises(Fault):
        await run.unless_stopped(error())


async def test_the_lease_is_kept_while_the_end_cannot_be_taken_in() -> None:
    taken_in = asyncio.Event()
    head = Head(taken_in)
    finishing = asyncio.create_task(Run(task(lease_s=0.3), head).finish(Stopped(lease=LEASE)))
    await head.until(lambda reports: any(isinstance(report, Progress) for report in reports))
    taken_in.set()
    await finishing
    assert isinstance(head.reports[0], Stopped)
