"""The life of every model's replica: three stages a job, overlapped between jobs.

::

    job 1   prepare ── run (GPU) ── publish
    job 2              prepare ──── run (GPU) ── publish
    job 3                           prepare ──── run (GPU) ── publish

The GPU is never idle while the last video is encoded or the next input is fetched. ``run`` happens on one thread that
owns the device; the event loop stays free for reports and health checks.
"""

import asyncio
import contextvars
import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from ray import serve

from deployments import logs
from deployments.able import Listener, Telling
from deployments.contract import SLOTS, Ability, Failure, FileFacts, Outcome, Report, Stopped, Task, Verdict
from deployments.engine import InputFile, Rendered
from deployments.failure_code import FailureCode
from deployments.faults import DeviceLost, Fault, OutOfMemory
from deployments.media import poster
from deployments.occupancy import Occupancy
from deployments.registry import MODELS
from deployments.run import Reporter, Run, RunStopped
from deployments.sandbox.connection import SandboxError
from deployments.sandbox.report import log_layers
from deployments.sandbox.secrecy import close_to_others
from deployments.scratch import Scratch
from deployments.stage import Stage
from deployments.transfer import Transfer

log = structlog.get_logger()
T = TypeVar("T")

#: Name of the Serve deployment that reports go to.
DISPATCHER = "dispatcher"
#: Ray's processes on a node that an autoscaler has made are told so who they are.
NODE_VARIABLE = "RAY_CLOUD_INSTANCE_ID"
#: Progress at which the stages begin, as clients of the original service know them.
PREPARED, COMPUTED = 10.0, 90.0
#: Seconds that a run may overstay its time limit between two steps before its replica counts as wedged.
STEP_GRACE_S = 120.0
#: Seconds for which a finished video waits for its poster, which is made and stored while the video is.
POSTER_S = 20.0
#: Seconds for which a thread may keep the interpreter while others want it; 5 ms by default. Each kernel launch, and
#: each step from one run to the next, waits so long while inputs are prepared or a video is encoded in Python.
SWITCH_S = 0.001
#: Out of memory so often in a row means that the process holds memory it will not give back.
MAX_OUT_OF_MEMORY = 2


class Unhealthy(Exception):
    """Serve should replace this replica."""


class WorkerBroke(Fault):
    """Another job broke this process before this one had its turn."""

    def __init__(self, why: str) -> None:
        super().__init__(FailureCode.WORKER_LOST, f"The GPU worker broke before this job had its turn: {why}")


class Head(Reporter, Listener, Protocol):
    """What a replica says to the head."""


class DispatcherReporter:
    """Reports by Serve handle. A dispatcher that restarts is waited for by the handle itself."""

    def __init__(self) -> None:
        context = serve.get_replica_context()
        self._replica = context.replica_id.unique_id
        # Fetched by name here: binding it would make a cycle, since the dispatcher is bound to the models.
        self._dispatcher = serve.get_deployment_handle(DISPATCHER, context.app_name)

    async def report(self, report: Report) -> Verdict:
        return Verdict(await self._dispatcher.report.remote(report))

    async def renew(self, task: Task) -> Task:
        renewed: Task = await self._dispatcher.renew.remote(task)
        return renewed

    async def able(self, ability: Ability) -> None:
        await self._dispatcher.able.remote(ability.model_copy(update={"replica": self._replica}))


class Replica:
    """Serves one model of the registry. ``generate`` is all the dispatcher calls."""

    def __init__(
        self,
        model: str,
        reporter: Head | None = None,
        *,
        deployment: str = "",
        allow_random_weights: bool = True,
    ) -> None:
        """``deployment``: which of the model's this is a replica of; empty: the first."""
        logs.configure(f"replica.{model}")
        # It holds Ray's token, and runs decoders of strangers' files as the same user where it is not root.
        close_to_others(log_layers())
        sys.setswitchinterval(SWITCH_S)
        started = time.monotonic()
        self._model = model
        MODELS[model].require_weights(os.environ, allow_random=allow_random_weights)
        self._engine = MODELS[model].load_engine()
        self._reporter = reporter or DispatcherReporter()
        self._transfer = Transfer()
        self._scratch = Scratch()
        self._occupancy = Occupancy()
        self._gpu = asyncio.Lock()
        self._gpu_thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._cpu_threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="cpu")
        self._runs = 0
        self._out_of_memory = 0
        self._broken: str | None = None
        random = self._engine.random_weights
        log.info("model_loaded", model=model, seconds=round(time.monotonic() - started, 1), random_weights=random)
        if random:
            log.warning("random_weights", hint=f"set {MODELS[model].weights_variable} to make real videos")
        found = self._engine.ability()
        named = deployment or model
        ability = Ability(**found.model_dump(), deployment=named, model=model, random_weights=random)
        log.info("able", deployment=named, weights=found.weights, variants=found.variants, plan=found.plan)
        self._telling = Telling(ability, self._reporter)

    def __del__(self) -> None:
        """Serve calls this before it ends the replica; what a killed one leaves is swept by the next."""
        if scratch := getattr(self, "_scratch", None):
            scratch.close()

    async def generate(self, task: Task) -> None:
        """Do one task. Returns when its end has been reported; raises nothing."""
        async with self._occupancy.entered(alone=task.alone):
            if self._broken:
                # Until Serve has replaced this process, it would use up one attempt after another of every job.
                log.warning("task_refused", job_id=task.lease.job_id, reason=self._broken)
                return
            if not self._telling.covers(task):
                # Sent before the head knew. When it is given back, it goes where it can be made.
                log.warning("task_beyond_ability", job_id=task.lease.job_id)
                await self._telling.tell()
                return
            run = Run(task, self._reporter, os.environ.get(NODE_VARIABLE, ""))
            work = asyncio.create_task(self._work(task, run))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                # The dispatcher let go of the call, most likely since the client cancelled. The thread must not be
                # left behind with the GPU, so ask for the verdict and stop in order.
                run.hurry()
                # Unlike ``await``, this does not pass a second cancellation on to the work.
                await asyncio.wait({work})
                raise

    async def stats(self) -> dict[str, int]:
        """``runs``: how many times this replica, of process ``pid``, ran the model."""
        return {"pid": os.getpid(), "runs": self._runs}

    async def check_health(self) -> None:
        """Called by Serve, every few seconds.

        Raises:
            Unhealthy: the device or its memory is lost to this process.
        """
        self._telling.remind()
        if self._broken:
            raise Unhealthy(self._broken)

    async def _work(self, task: Task, run: Run) -> None:
        lease = task.lease
        structlog.contextvars.bind_contextvars(job_id=lease.job_id, request_id=lease.request_id, attempt=lease.attempt)
        if not await run.start():
            log.info("run_not_started", verdict=run.verdict)
            if run.verdict is Verdict.CANCELLED:
                # An earlier try of the same report had started the job; only the answer was lost.
                await run.finish(Stopped(lease=lease))
            return
        heartbeat = asyncio.create_task(run.heartbeat())
        report: Outcome | Failure | Stopped | None
        try:
            with self._scratch.job() as workdir:
                report = await self._stages(await run.renewed(), run, workdir)
        except RunStopped:
            report = Stopped(lease=lease, timings=run.timings) if run.verdict is Verdict.CANCELLED else None
        except Fault as fault:
            report = self._failure(run, task, fault)
        except Exception as error:
            log.exception("run_crashed")
            crash = Fault(FailureCode.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
            report = self._failure(run, task, crash)
        finally:
            heartbeat.cancel()
        if report is not None:
            await run.finish(report)
        log.info("run_ended", report=report.kind if report else "none", **_rounded(run.timings))

    async def _stages(self, task: Task, run: Run, workdir: Path) -> Outcome:
        with _timed(run, "prepare"):
            inputs = {name: InputFile(workdir / name, item.content_type) for name, item in task.inputs.items()}
            for name, item in task.inputs.items():
                path = inputs[name].path
                await run.unless_stopped(self._transfer.get(item.url, path, partial(_input_link, run, name)))
            run.step(Stage.PREPARING, PREPARED / 2)
            prepared = await self._in_cpu(run, self._engine.prepare, task.params, inputs, workdir)
            run.step(Stage.WAITING_FOR_GPU, PREPARED)
        with _timed(run, "wait"):
            await run.unless_stopped(self._gpu.acquire(), own=False)
        try:
            with _timed(run, "run"):
                result = await self._on_gpu(run, prepared)
        finally:
            self._gpu.release()
        # The decoded inputs are as large as the video; the next stage does not need them.
        del prepared
        with _timed(run, "publish"):
            run.step(Stage.ENCODING, COMPUTED)
            rendered: Rendered = await self._in_cpu(run, self._engine.publish, result, workdir)
            del result
            run.step(Stage.UPLOADING, (COMPUTED + 100) / 2)
            showing = asyncio.create_task(self._poster(run, task, rendered.path))
            try:
                md5 = await self._in_cpu(run, _md5, rendered.path)
                await run.unless_stopped(self._transfer.put(rendered.path, task.output_url, partial(_output_link, run)))
                # Neither a cancel nor the time limit undoes a video that is there.
                await asyncio.wait({showing}, timeout=min(POSTER_S, max(0.0, run.seconds_left)))
                shown = showing.result() if showing.done() else None
            finally:
                showing.cancel()
        self._out_of_memory = 0
        return Outcome(
            lease=task.lease,
            size=rendered.path.stat().st_size,
            md5=md5,
            media=rendered.media,
            poster=shown,
            timings=run.timings,
            notes={**rendered.notes, **({"random_weights": True} if self._engine.random_weights else {})},
        )

    async def _poster(self, run: Run, task: Task, video: Path) -> FileFacts | None:
        """Make and store it. None if that fails, whatever the reason: the video is what was asked for."""
        # A head of the version before asks for none.
        if not (url := getattr(task, "poster_url", "")):
            return None
        path = video.with_name("poster.webp")
        try:
            await self._call(self._cpu_threads, poster.make, video, path)
            await self._transfer.put(path, url, partial(_poster_link, run), content_type=poster.CONTENT_TYPE)
            return FileFacts(size=path.stat().st_size, md5=_md5(path))
        except (Fault, SandboxError, OSError) as error:
            log.warning("no_poster", error=str(error))
            return None

    async def _on_gpu(self, run: Run, prepared: Any) -> Any:
        def step(stage: Stage, fraction: float) -> None:
            run.step(stage, PREPARED + (COMPUTED - PREPARED) * fraction)

        if self._broken:
            raise WorkerBroke(self._broken)
        step(Stage.GENERATING, 0.0)
        self._runs += 1
        return await self._in_time(run, self._call(self._gpu_thread, self._engine.run, prepared, step))

    def _failure(self, run: Run, task: Task, fault: Fault) -> Failure:
        log.warning("run_failed", code=fault.code, error=fault.message, transient=fault.transient)
        if isinstance(fault, OutOfMemory):
            self._out_of_memory += 1
            self._free()
            if self._out_of_memory >= MAX_OUT_OF_MEMORY:
                self._broken = f"out of memory {self._out_of_memory} times in a row"
        if isinstance(fault, DeviceLost):
            self._broken = fault.message
        return Failure(
            lease=task.lease,
            code=fault.code,
            message=fault.message[:2000],
            transient=fault.transient,
            blameless=isinstance(fault, WorkerBroke),
            timings=run.timings,
        )

    def _free(self) -> None:
        try:
            self._engine.free()
        except Exception as error:
            # A dead CUDA context often shows here first.
            log.exception("free_failed")
            self._broken = f"{type(error).__name__}: {error}"
        gc.collect()

    async def _in_cpu(self, run: Run, function: Callable[..., T], *args: Any) -> T:
        return await self._in_time(run, self._call(self._cpu_threads, function, *args))

    async def _in_time(self, run: Run, work: "asyncio.Future[T]") -> T:
        # The model's limit: who gives a run less time does not make a slow thread a wedged one.
        left = run.seconds_left_of(MODELS[self._model].timeout_s)
        done, _ = await asyncio.wait({work}, timeout=max(0.0, left) + STEP_GRACE_S)
        if not done:
            # The thread hangs, in the device perhaps, and cannot be ended; the process has to go.
            self._broken = "a thread made no step within its time limit"
            raise Fault(FailureCode.TIMED_OUT, self._broken)
        return work.result()

    def _call(self, threads: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(threads, lambda: context.run(function, *args))


class _timed:
    """Adds the seconds its body takes to the run's timings, however it ends."""

    def __init__(self, run: Run, stage: str) -> None:
        self._run = run
        self._stage = stage

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._run.timings[self._stage] = time.monotonic() - self._begun


async def _input_link(run: Run, name: str) -> str:
    return (await run.renewed(tries=1)).inputs[name].url


async def _output_link(run: Run) -> str:
    return (await run.renewed(tries=1)).output_url


async def _poster_link(run: Run) -> str:
    return (await run.renewed(tries=1)).poster_url


def _rounded(timings: dict[str, float]) -> dict[str, float]:
    return {f"{stage}_s": round(seconds, 3) for stage, seconds in timings.items()}


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
