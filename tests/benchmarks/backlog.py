"""How much of the time a GPU computes while a backlog is worked off: the real replica, with stages of fixed length."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.contract import SLOTS, Lease, MediaInput, Outcome, Report, Task, Verdict
from deployments.engine import InputFile, Rendered, Step
from deployments.registry import MODELS
from deployments.replica import Replica
from deployments.stage import Stage
from tests.benchmarks.report import table
from tests.fakes.engines import FACTS, VIDEO, spec_of
from tests.fakes.http_source import HttpSource, reply

#: Seconds that a report by handle takes to the head and back, between a rented machine and the head.
REPORT_S = 0.05
#: Of the time from the first run to the last.
BAR = 0.97


@dataclass
class FixedTimes:
    """An engine whose stages take the same time for every job."""

    prepare_s: float
    run_s: float
    publish_s: float
    #: Whether prepare and publish compute in Python, and keep the interpreter from all other threads; else they wait.
    holding: bool = False
    random_weights: bool = False
    #: When each run began and ended, by ``time.perf_counter``.
    runs: list[tuple[float, float]] = field(default_factory=list)

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> None:
        self._spend(self.prepare_s)

    def run(self, prepared: None, step: Step) -> None:
        began = time.perf_counter()
        step(Stage.DENOISING, 0.5)
        time.sleep(self.run_s)
        self.runs.append((began, time.perf_counter()))

    def publish(self, result: None, workdir: Path) -> Rendered:
        self._spend(self.publish_s)
        path = workdir / "output.mp4"
        path.write_bytes(VIDEO)
        return Rendered(path=path, media=FACTS)

    def free(self) -> None:
        pass

    def _spend(self, seconds: float) -> None:
        if not self.holding:
            time.sleep(seconds)
            return
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass


class Head:
    """Takes every report, after the time that the way takes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    async def report(self, report: Report) -> Verdict:
        await asyncio.sleep(REPORT_S)
        if isinstance(report, Outcome):
            self.outcomes.append(report)
        return Verdict.GO_ON

    async def renew(self, task: Task) -> Task:
        await asyncio.sleep(REPORT_S)
        return task


@dataclass(frozen=True, kw_only=True)
class Share:
    """What became of a backlog."""

    jobs: int
    run_s: float
    holding: bool
    #: From the first run's begin to the last one's end, the part of it in which some run was under way.
    busy: float
    #: Seconds between one run's end and the next one's begin.
    gap_p50_s: float
    gap_most_s: float


def measure(jobs: int, run_s: float, *, holding: bool = False) -> Share:
    """Work off ``jobs`` whose prepare and publish take half of ``run_s`` each."""
    engine = FixedTimes(run_s / 2, run_s, run_s / 2, holding)
    outcomes = asyncio.run(_work_off(engine, jobs))
    if len(outcomes) != jobs:
        raise RuntimeError(f"{jobs - len(outcomes)} of {jobs} jobs have no video")
    whole = engine.runs[-1][1] - engine.runs[0][0]
    gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(engine.runs)]
    return Share(
        jobs=jobs,
        run_s=run_s,
        holding=holding,
        busy=sum(end - begin for begin, end in engine.runs) / whole,
        gap_p50_s=statistics.median(gaps),
        gap_most_s=max(gaps),
    )


def lines(shares: Sequence[Share]) -> list[str]:
    """A table, and whether the bar is met."""
    rows = [
        [
            f"{share.jobs} jobs of {share.run_s} s; prepare and publish {'compute' if share.holding else 'wait'}",
            f"{share.busy:.4f}",
            f"{share.gap_p50_s * 1000:.1f}",
            f"{share.gap_most_s * 1000:.1f}",
        ]
        for share in shares
    ]
    holds = "holds" if min(share.busy for share in shares) >= BAR else "DOES NOT HOLD"
    return [
        *table(("GPU in a backlog", "busy", "between runs, median ms", "most ms"), rows),
        "",
        f"At least {BAR}: {holds}. Half of a run goes into each of prepare and publish; what computes there is Python "
        f"that holds the interpreter, the worst there is. Reports to the head and back take {REPORT_S * 1000:.0f} ms.",
    ]


async def _work_off(engine: FixedTimes, jobs: int) -> list[Outcome]:
    head = Head()
    with served(engine, head) as replica:
        async with HttpSource({"/in": reply(200, b"pixels"), "/out": reply(200)}) as store:
            # As many as Serve gives a replica at a time; the dispatcher has the next one ready.
            slots = asyncio.Semaphore(SLOTS)

            async def generate(number: int) -> None:
                async with slots:
                    await replica.generate(_task(store, number))

            await asyncio.gather(*(generate(number) for number in range(jobs)))
    return head.outcomes


@contextmanager
def served(engine: Any, head: Head) -> Iterator[Replica]:
    """A replica of a model that is this engine, which is in the registry for as long."""
    MODELS["scripted"] = spec_of(engine, timeout_s=600)
    try:
        yield Replica("scripted", reporter=head)
    finally:
        del MODELS["scripted"]


def _task(store: HttpSource, number: int) -> Task:
    return Task(
        lease=Lease(job_id=f"job {number}", token="t", attempt=1),
        model="scripted",
        params={"name": str(number)},
        inputs={"image": MediaInput(content_type="image/png", url=store.url("/in"))},
        output_url=store.url("/out"),
        lease_s=30,
        timeout_s=600,
    )
