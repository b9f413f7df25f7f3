"""One run of one job on a replica: its lease, its progress, and whether it should still go on."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import structlog

from deployments.contract import Failure, Outcome, Progress, Report, Started, Stopped, Task, Verdict
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.stage import Stage

log = structlog.get_logger()
T = TypeVar("T")

#: Seconds between reports while progress is made.
REPORT_INTERVAL_S = 1.0
#: A report that takes longer is sent again: a handle whose other end vanished may never return.
REPORT_TIMEOUT_S = 15.0
#: Before a question that nobody answered is asked again; longer each time.
AGAIN_S = 0.5
#: Seconds for which the end of a run is reported again and again while nobody answers. The video exists already. A head
#: that answers takes the report in even when its store is away, so this is only for a head that is away.
LAST_REPORT_S = 600.0
#: Tries to have the links of a task renewed before it begins. The old ones are good for a day.
RENEWALS = 3


class Reporter(Protocol):
    """The way to the head. Raises when it cannot be reached."""

    async def report(self, report: Report) -> Verdict:
        """Deliver one report."""

    async def renew(self, task: Task) -> Task:
        """The same task with links that are good from now on."""


class RunStopped(Exception):
    """The head wants no more of this run."""


class Run:
    """Reports for one task. Its ``step`` is called from the GPU's thread, everything else from the event loop."""

    def __init__(self, task: Task, reporter: Reporter, node: str = "") -> None:
        """``node``: the rented machine that this is, as Ray names it; empty: it is none."""
        self._task = task
        self._node = node
        self._reporter = reporter
        self._deadline = time.monotonic() + task.timeout_s
        self._stage = Stage.PREPARING
        self._percent = 0.0
        self._hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self.verdict = Verdict.GO_ON
        self.timings: dict[str, float] = {}

    async def start(self) -> bool:
        """Take the job up. False if it is not ours any more."""
        self.verdict = await self._report(Started(lease=self._task.lease, node=self._node), self._task.lease_s)
        return self.verdict is Verdict.GO_ON

    async def renewed(self, tries: int = RENEWALS) -> Task:
        """The task with fresh links; as it is when nobody answers."""
        for left in reversed(range(tries)):
            try:
                async with asyncio.timeout(min(REPORT_TIMEOUT_S, self._task.lease_s / 3)):
                    return await self._reporter.renew(self._task)
            except Exception as error:
                log.warning("links_not_renewed", error=repr(error))
            if left:
                await asyncio.sleep(AGAIN_S)
        return self._task

    def step(self, stage: Stage, percent: float) -> None:
        """Note progress.

        Raises:
            RunStopped: cancelled, or the lease is lost.
            Fault: out of time.
        """
        if self.verdict is not Verdict.GO_ON:
            raise RunStopped
        if self.seconds_left < 0:
            raise self._out_of_time()
        self._stage, self._percent = stage, max(self._percent, min(percent, 100.0))

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def seconds_left_of(self, limit_s: float) -> float:
        """As if it might take so long: a client may have given it less than the model does."""
        return self.seconds_left + limit_s - self._task.timeout_s

    def _out_of_time(self) -> Fault:
        return Fault(FailureCode.TIMED_OUT, f"The run took longer than {self._task.timeout_s:g} s.")

    def hurry(self) -> None:
        """Ask the head now what it wants, instead of at the next report."""
        self._hurry.set()

    async def unless_stopped(self, work: Awaitable[T], *, own: bool = True) -> T:
        """Await ``work``, but leave it as soon as the run has to stop or is out of time.

        ``own`` is False while others are waited for: that time does not count against the run's limit.

        Raises:
            RunStopped: it had to.
            Fault: out of time.
        """
        began = time.monotonic()
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            left = max(0.0, self.seconds_left) if own else None
            done, _ = await asyncio.wait({task, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
            raise RunStopped if done else self._out_of_time()
        finally:
            if not own:
                self._deadline += time.monotonic() - began
            stopping.cancel()
            task.cancel()

    async def heartbeat(self) -> None:
        """Report progress and keep the lease until cancelled; learn from the answers whether to stop."""
        sent: tuple[Stage, float] | None = None
        sent_at = 0.0
        while self.verdict is Verdict.GO_ON:
            now = (self._stage, self._percent)
            if now != sent or self._hurry.is_set() or time.monotonic() - sent_at > self._task.lease_s / 3:
                self._hurry.clear()
                progress = Progress(lease=self._task.lease, stage=now[0], percent=now[1])
                try:
                    async with asyncio.timeout(REPORT_TIMEOUT_S):
                        self.verdict = await self._reporter.report(progress)
                    sent, sent_at = now, time.monotonic()
                except Exception as error:
                    # Nobody answers: the work goes on, the head may come back before the lease is given away.
                    log.warning("report_failed", error=repr(error))
                    sent = None
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._hurry.wait()
            except TimeoutError:
                continue
        log.info("run_stopping", verdict=self.verdict)
        self._stopping.set()

    async def finish(self, report: Outcome | Failure | Stopped) -> None:
        """Tell how the run ended; insist, since the work is done and only this is missing."""
        keeping = asyncio.create_task(self._keep_lease())
        try:
            self.verdict = await self._report(report, LAST_REPORT_S)
        finally:
            keeping.cancel()
        if self.verdict is Verdict.LEASE_LOST:
            log.warning("run_discarded", report=report.kind)

    async def _keep_lease(self) -> None:
        """Renew the lease while the end cannot be taken in, e.g. since the store is down: the video exists."""
        while True:
            await asyncio.sleep(self._task.lease_s / 3)
            progress = Progress(lease=self._task.lease, stage=self._stage, percent=self._percent)
            try:
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await self._reporter.report(progress)
            except Exception as error:
                log.warning("report_failed", report=progress.kind, error=repr(error))

    async def _report(self, report: Report, patience_s: float) -> Verdict:
        give_up = time.monotonic() + patience_s
        wait = AGAIN_S
        while True:
            try:
                async with asyncio.timeout(min(REPORT_TIMEOUT_S, max(0.0, give_up - time.monotonic()))):
                    return await self._reporter.report(report)
            except Exception as error:
                log.warning("report_failed", report=report.kind, error=repr(error))
                if time.monotonic() + wait > give_up:
                    return Verdict.LEASE_LOST
            await asyncio.sleep(wait)
            wait = min(wait * 2, 10.0)
