"""What the service costs a job in CPU-seconds, over diffusers and ffmpeg alone: the tiny checkpoint, no queue."""

import asyncio
import io
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from skimage import data

from deployments.contract import Lease, MediaInput, Task
from deployments.engine import InputFile, Rendered, Step
from deployments.ltx2.engine import Footage, LTX2Engine
from deployments.ltx2.pipeline import Shot
from deployments.ltx2.recipes import RecipeName
from deployments.replica import Replica
from tests.benchmarks.backlog import Head, served
from tests.benchmarks.clock import Clock, measured
from tests.benchmarks.plain import Plain
from tests.benchmarks.report import spread, table
from tests.fakes.http_source import HttpSource, reply

#: CPU-seconds a job.
BAR_S = 0.15
#: Of the picture that is sent, a JPEG.
SENT = (1280, 720)
#: What is in the figure, in the order in which it happens.
PARTS = ("prepare", "image decoder", "run less diffusers", "publish", "replica, transfers, reports", "poster")
#: Those of the engine; the others are around it.
OF_ENGINE = PARTS[:4]


@dataclass
class Watched:
    """An engine whose stages are measured. It runs one job after the other, so all that happens meanwhile is theirs."""

    engine: LTX2Engine
    prepared: Clock = field(default_factory=Clock)
    ran: Clock = field(default_factory=Clock)
    published: Clock = field(default_factory=Clock)
    shot: Shot | None = None

    @property
    def random_weights(self) -> bool:
        return self.engine.random_weights

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> Shot:
        with measured(self.prepared):
            self.shot = self.engine.prepare(params, inputs, workdir)
        return self.shot

    def run(self, prepared: Shot, step: Step) -> Footage:
        with measured(self.ran):
            return self.engine.run(prepared, step)

    def publish(self, result: Footage, workdir: Path) -> Rendered:
        with measured(self.published):
            return self.engine.publish(result, workdir)

    def free(self) -> None:
        self.engine.free()


def measure(recipe: RecipeName, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Figures and a table: ``rounds`` jobs through a replica, each beside the same clip by diffusers alone."""
    # A second thread makes the first one wait and burn.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as room:
        os.environ["VIDEO_API_DATA_DIR"] = room
        engine = LTX2Engine()
        each = asyncio.run(_jobs(engine, recipe, rounds))
    costs = {part: spread([job[part] for job in each]) for part in each[0]}
    sums = {
        "engine": statistics.median(sum(job[part] for part in OF_ENGINE) for job in each),
        "through the replica": statistics.median(sum(job[part] for part in PARTS) for job in each),
    }
    figures = {
        "recipe": recipe,
        "cpu_s": costs,
        **{name: round(value, 4) for name, value in sums.items()},
        "bar_s": BAR_S,
    }
    rows = [[part, *(f"{cost[key]:.3f}" for key in ("median", "least", "most"))] for part, cost in costs.items()]
    rows += [[f"**{name}**", f"**{value:.3f}**", "", ""] for name, value in sums.items()]
    holds = "holds" if sums["engine"] <= BAR_S else "DOES NOT HOLD"
    return figures, [
        *table((f"CPU-seconds of a job, `{recipe}`", "median", "least", "most"), rows),
        "",
        f"The engine's overhead is what `prepare`, `run` and `publish` take beyond diffusers and ffmpeg; at most "
        f"{BAR_S} s: {holds}. {rounds} jobs of 5 s and {SENT[0]}x{SENT[1]} JPEGs, one after the other, each beside the "
        "same clip by diffusers alone, which hands its frames over as float32, as its documentation does.",
    ]


async def _jobs(engine: LTX2Engine, recipe: RecipeName, rounds: int) -> list[dict[str, float]]:
    head, watched = Head(), Watched(engine)
    pipeline = engine._pipeline
    plain = Plain(pipeline._pipe, pipeline.checkpoint, pipeline._upsampler)
    with served(watched, head) as replica, _store() as base:
        # The first of each finds nothing warm.
        costs = [await _job(watched, replica, plain, _task(base, number, recipe)) for number in range(rounds + 1)]
    if len(head.outcomes) != rounds + 1:
        raise RuntimeError("a job has no video; its log line says why")
    return costs[1:]


@contextmanager
def _store() -> Iterator[str]:
    """The address of one, in a process of its own: what it takes is not ours."""
    ours, theirs = multiprocessing.Pipe()
    store = multiprocessing.get_context("spawn").Process(target=_keep, args=(theirs,), daemon=True)
    store.start()
    try:
        yield ours.recv()
    finally:
        store.terminate()
        store.join()


async def _job(watched: Watched, replica: Replica, plain: Plain, task: Task) -> dict[str, float]:
    watched.prepared, watched.ran, watched.published = Clock(), Clock(), Clock()
    bare, whole = Clock(), Clock()
    keeper = _keeper()
    with measured(whole):
        await replica.generate(task)
    kept = _keeper() - keeper
    assert watched.shot is not None
    with measured(bare):
        plain.render(watched.shot)
    stages = watched.prepared, watched.ran, watched.published
    return {
        "diffusers alone": bare.own,
        "ffmpeg, encoding": watched.published.programs,
        "prepare": watched.prepared.own,
        "image decoder": watched.prepared.programs,
        "run less diffusers": watched.ran.own - bare.own,
        "publish": watched.published.own,
        "replica, transfers, reports": whole.own - sum(stage.own for stage in stages) + kept,
        "poster": whole.programs - sum(stage.programs for stage in stages),
    }


def _keeper() -> float:
    """CPU-seconds of the sandbox's keeper, which is no program of its own."""
    return sum(
        sum(child.cpu_times()[:2]) for child in psutil.Process().children() if "keeper" in " ".join(child.cmdline())
    )


def _task(base: str, number: int, recipe: RecipeName) -> Task:
    return Task(
        lease=Lease(job_id=f"job {number}", token="t", attempt=1),
        model="scripted",
        params={"prompt": f"Clip {number}: a street at dawn after rain", "recipe": recipe, "seed": number},
        inputs={"image": MediaInput(content_type="image/jpeg", url=f"{base}/image")},
        output_url=f"{base}/out",
        poster_url=f"{base}/poster",
        lease_s=30,
        timeout_s=600,
    )


def _keep(told: Connection) -> None:
    asyncio.run(_serve(told))


async def _serve(told: Connection) -> None:
    picture = io.BytesIO()
    # NASA's photograph of Eileen Collins, public domain.
    Image.fromarray(data.astronaut()).resize(SENT).save(picture, "JPEG")
    routes = {"/image": reply(200, picture.getvalue()), "/out": reply(200), "/poster": reply(200)}
    async with HttpSource(routes) as source:
        told.send(source.url("").rstrip("/"))
        await asyncio.Event().wait()
