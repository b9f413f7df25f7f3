"""A replica's life with an engine whose stages the test holds open, a real HTTP store and a head that listens."""

import asyncio
import hashlib
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
import structlog
from PIL import Image
from ray import serve

from deployments import replica as replica_module
from deployments import run as run_module
from deployments import transfer as transfer_module
from deployments.contract import (
    ANY_SIZE,
    Ability,
    EngineAbility,
    Failure,
    FileFacts,
    Lease,
    MediaInput,
    Outcome,
    Progress,
    Report,
    Started,
    Stopped,
    Task,
    Verdict,
)
from deployments.engine import Step
from deployments.failure_code import FailureCode
from deployments.faults import DeviceLost, Fault, OutOfMemory
from deployments.registry import MODELS
from deployments.replica import DispatcherReporter, Replica, Unhealthy
from tests.fakes.engines import VIDEO, Gate, ScriptedEngine, spec_of
from tests.fakes.http_source import Answer, HttpSource, reply, stalled
from tests.fakes.media import PICTURE, make

LIMIT_S = 30


class Head:
    """Hears every report. ``verdicts`` answers by job; ``deaf`` makes it unreachable for reports of these kinds."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.verdicts: dict[str, Verdict] = {}
        self.deaf: set[type] = set()
        self.refused: list[Report] = []
        self.able_said: list[Ability] = []
        #: Makes links anew.
        self.fresh: Callable[[Task], Task] = lambda task: task
        self.renewed = 0
        self._heard = asyncio.Event()

    async def report(self, report: Report) -> Verdict:
        self._heard.set()
        if type(report) in self.deaf:
            self.refused.append(report)
            raise ConnectionError("nobody there")
        self.reports.append(report)
        return self.verdicts.get(report.lease.job_id, Verdict.GO_ON)

    async def able(self, ability: Ability) -> None:
        self.able_said.append(ability)
        self._heard.set()

    async def renew(self, task: Task) -> Task:
        self.renewed += 1
        return self.fresh(task)

    def of(self, name: str) -> list[Report]:
        return [report for report in self.reports if report.lease.job_id == name]

    def last(self, name: str) -> Report:
        return self.of(name)[-1]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._heard.clear()
                await self._heard.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "REPORT_INTERVAL_S", 0.02)
    monkeypatch.setattr(run_module, "AGAIN_S", 0.02)
    monkeypatch.setattr(transfer_module, "AGAIN_S", 0.02)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def replica(engine: ScriptedEngine, head: Head, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setitem(MODELS, "scripted", spec_of(engine))
    return Replica("scripted", reporter=head)


@pytest.fixture
async def store() -> AsyncIterator[HttpSource]:
    routes: dict[str, Answer] = {"/image": reply(200, b"pixels"), "/out": reply(200)}
    async with HttpSource(routes) as source:
        yield source


@pytest.fixture
def task(store: HttpSource) -> Callable[..., Task]:
    def make(
        name: str = "job",
        *,
        timeout_s: float = 60,
        lease_s: float = 30,
        attempt: int = 1,
        alone: bool = False,
        poster: str = "",
    ) -> Task:
        url = store.url("/image")
        return Task(
            lease=Lease(job_id=name, token=f"token of {name}", attempt=attempt, request_id=f"request of {name}"),
            model="scripted",
            params={"name": name},
            inputs={"image": MediaInput(content_type="image/png", url=url)},
            output_url=store.url("/out"),
            poster_url=store.url(poster) if poster else "",
            lease_s=lease_s,
            timeout_s=timeout_s,
            alone=alone,
        )

    return make


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, LIMIT_S)


async def within(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await work


def stepping(gate: Gate) -> Callable[[Step], None]:
    """A model that steps for ever, so that only a verdict can end it."""

    def run(step: Step) -> None:
        gate.reached.set()
        while True:
            step("generating", 0.5)
            gate.opened.wait(0.01)

    return run


# -------------------------------------------------------------------- one job


async def test_a_job_from_start_to_video(
    replica: Replica, engine: ScriptedEngine, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    await within(replica.generate(task()))
    started, outcome = head.reports[0], head.last("job")
    assert isinstance(started, Started)
    assert isinstance(outcome, Outcome)
    assert (outcome.size, outcome.md5) == (len(VIDEO), hashlib.md5(VIDEO).hexdigest())
    assert outcome.notes == {"seed": 7}
    assert outcome.timings.keys() == {"prepare", "wait", "run", "publish"}
    assert all(seconds >= 0 for seconds in outcome.timings.values())
    assert engine.inputs == [{"image": b"pixels"}]
    put = store.seen[-1]
    assert (put.method, put.body, put.headers["content-type"]) == ("PUT", VIDEO, "video/mp4")
    assert not any(workdir.exists() for workdir in engine.workdirs)
    assert (await replica.stats())["runs"] == 1
    await replica.check_health()


async def test_it_says_what_it_can_make_when_it_is_looked_at(replica: Replica, head: Head) -> None:
    await replica.check_health()
    await head.until(lambda: bool(head.able_said))
    await replica.check_health()
    (said,) = head.able_said
    assert (said.deployment, said.model, said.random_weights) == ("scripted", "scripted", False)
    assert said.variants == {"": ANY_SIZE}


async def test_what_is_beyond_it_is_given_back_unstarted_once_that_was_said(
    engine: ScriptedEngine, head: Head, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "scripted", replace(spec_of(engine), size=lambda params: len(params.name)))
    engine.can = EngineAbility(variants={"": 3})
    replica = Replica("scripted", reporter=head, deployment="scripted-40gb")
    await within(replica.generate(task("long")))
    assert (head.reports, engine.events) == ([], [])
    assert [said.deployment for said in head.able_said] == ["scripted-40gb"]
    await within(replica.generate(task("abc")))
    assert isinstance(head.last("abc"), Outcome)


async def test_the_head_hears_which_replica_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    able = AsyncMock()
    context = SimpleNamespace(app_name="app", replica_id=SimpleNamespace(unique_id="r1"))
    handles = {("dispatcher", "app"): SimpleNamespace(able=SimpleNamespace(remote=able))}
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *of: handles[of])
    said = Ability(deployment="ltx2", model="ltx2", random_weights=False)
    await DispatcherReporter().able(said)
    able.assert_awaited_once_with(said.model_copy(update={"replica": "r1"}))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("film") / "a.mp4", *PICTURE, "-pix_fmt", "yuv420p", seconds=0.2).read_bytes()


async def test_an_input_that_was_left_out_is_not_there(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    await within(replica.generate(task().model_copy(update={"inputs": {}})))
    assert isinstance(head.last("job"), Outcome)
    assert engine.inputs == [{}]


async def test_a_video_has_its_first_frame_beside_it(
    replica: Replica, engine: ScriptedEngine, head: Head, store: HttpSource, film: bytes, task: Callable[..., Task]
) -> None:
    engine.video = film
    store.routes["/poster"] = reply(200)
    await within(replica.generate(task(poster="/poster")))
    outcome = head.last("job")
    assert isinstance(outcome, Outcome)
    (put,) = (seen for seen in store.seen if seen.target == "/poster")
    assert (put.method, put.headers["content-type"]) == ("PUT", "image/webp")
    assert outcome.poster == FileFacts(size=len(put.body), md5=hashlib.md5(put.body).hexdigest())
    with Image.open(io.BytesIO(put.body)) as poster:
        assert poster.format == "WEBP"


@pytest.mark.parametrize("fault", ["no frame", "refused", "never answered"])
async def test_a_poster_that_fails_costs_no_video(
    replica: Replica,
    engine: ScriptedEngine,
    head: Head,
    store: HttpSource,
    film: bytes,
    task: Callable[..., Task],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "POSTER_S", 0.1)
    engine.video = VIDEO if fault == "no frame" else film
    store.routes["/poster"] = {"no frame": reply(200), "refused": reply(400), "never answered": stalled()}[fault]
    await within(replica.generate(task(poster="/poster")))
    outcome = head.last("job")
    assert isinstance(outcome, Outcome)
    assert (outcome.md5, outcome.poster) == (hashlib.md5(engine.video).hexdigest(), None)
    assert not any(workdir.exists() for workdir in engine.workdirs)


async def test_a_head_of_the_version_before_wants_no_poster(
    replica: Replica, engine: ScriptedEngine, head: Head, film: bytes, task: Callable[..., Task]
) -> None:
    """Its tasks are unpickled as they are, without the field."""
    engine.video = film
    old = task()
    del old.__dict__["poster_url"]
    await within(replica.generate(old))
    outcome = head.last("job")
    assert isinstance(outcome, Outcome)
    assert outcome.poster is None


async def test_a_rented_node_says_which_it_is(
    replica: Replica, head: Head, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "slot-1")
    await within(replica.generate(task()))
    started = head.reports[0]
    assert isinstance(started, Started)
    assert started.node == "slot-1"


async def test_random_weights_are_noted_in_the_video(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    engine.random_weights = True
    await within(replica.generate(task()))
    assert head.last("job").notes == {"seed": 7, "random_weights": True}


async def test_nothing_is_done_for_a_job_that_is_not_ours_any_more(
    replica: Replica, engine: ScriptedEngine, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    head.verdicts["job"] = Verdict.LEASE_LOST
    await within(replica.generate(task()))
    assert [type(report) for report in head.reports] == [Started]
    assert (engine.events, store.seen) == ([], [])


async def test_a_cancel_that_answers_a_repeated_start_is_obeyed(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    """The first answer was lost and the client cancelled meanwhile: without ``Stopped`` the job would hang in
    ``processing`` until its lease runs out."""
    head.verdicts["job"] = Verdict.CANCELLED
    await within(replica.generate(task()))
    assert [type(report) for report in head.reports] == [Started, Stopped]
    assert engine.events == []


# -------------------------------------------------------------------- several jobs


async def test_the_next_input_is_prepared_while_the_gpu_works(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    computing, preparing = Gate(), Gate()
    engine.script["run", "one"] = computing
    engine.script["prepare", "two"] = preparing
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(computing)
    second = asyncio.create_task(replica.generate(task("two")))
    # Reached while ``computing`` is still closed: that is the overlap.
    await reached(preparing)
    preparing.opened.set()
    computing.opened.set()
    await within(asyncio.gather(first, second))
    assert {type(head.last(name)) for name in ("one", "two")} == {Outcome}


async def test_the_next_job_computes_while_the_last_video_is_encoded(
    replica: Replica, engine: ScriptedEngine, task: Callable[..., Task]
) -> None:
    encoding, computing = Gate(), Gate()
    engine.script["publish", "one"] = encoding
    engine.script["run", "two"] = computing
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(encoding)
    second = asyncio.create_task(replica.generate(task("two")))
    await reached(computing)
    encoding.opened.set()
    computing.opened.set()
    await within(asyncio.gather(first, second))


async def test_one_job_at_a_time_has_the_gpu(
    replica: Replica, engine: ScriptedEngine, task: Callable[..., Task]
) -> None:
    await within(asyncio.gather(*(replica.generate(task(f"job {number}")) for number in range(6))))
    assert engine.most_on_gpu == 1
    assert (await replica.stats())["runs"] == 6


def test_a_job_that_computes_in_python_holds_the_gpus_thread_up_for_a_millisecond_at_most(replica: Replica) -> None:
    assert sys.getswitchinterval() <= 0.001


async def test_every_log_line_of_a_job_names_it_in_threads_too(
    replica: Replica, engine: ScriptedEngine, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(lines),
        cache_logger_on_first_use=False,
    )
    inside = structlog.get_logger()
    for name in ("one", "two"):
        for stage in ("prepare", "run", "publish"):
            engine.script[stage, name] = lambda *_, stage=stage, name=name: inside.info(
                "inside", said=f"{stage} {name}"
            )
    try:
        await within(asyncio.gather(replica.generate(task("one")), replica.generate(task("two"))))
    finally:
        structlog.reset_defaults()
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {line["event"] for line in logged} == {"inside", "run_ended"}
    assert sum(line["event"] == "inside" for line in logged) == 6
    for line in logged:
        assert line["request_id"] == f"request of {line['job_id']}"
        assert line["attempt"] == 1
        if line["event"] == "inside":
            assert line["said"].endswith(line["job_id"])


# -------------------------------------------------------------------- stopping


async def test_a_cancelled_job_stops_at_the_next_step_and_frees_the_gpu(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    gate = Gate()
    engine.script["run", "one"] = stepping(gate)
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(gate)
    head.verdicts["one"] = Verdict.CANCELLED
    await within(first)
    assert isinstance(head.last("one"), Stopped)
    assert head.last("one").timings["run"] > 0
    assert ("publish", "one", "begin") not in engine.events
    await within(replica.generate(task("two")))
    assert isinstance(head.last("two"), Outcome)


async def test_a_job_that_waits_for_the_gpu_stops_without_it(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    gate = Gate()
    engine.script["run", "one"] = gate
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(gate)
    second = asyncio.create_task(replica.generate(task("two")))
    await head.until(lambda: any(isinstance(r, Progress) and r.stage == "waiting_for_gpu" for r in head.of("two")))
    head.verdicts["two"] = Verdict.CANCELLED
    # The request is let go of, which makes the heartbeat ask at once.
    second.cancel()
    await within(asyncio.wait({second}))
    assert isinstance(head.last("two"), Stopped)
    gate.opened.set()
    await within(first)
    assert isinstance(head.last("one"), Outcome)
    assert ("run", "two", "begin") not in engine.events


async def test_a_download_is_left_when_the_job_is_cancelled(
    replica: Replica, engine: ScriptedEngine, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    store.routes["/image"] = stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npix")
    work = asyncio.create_task(replica.generate(task()))
    await head.until(lambda: any(isinstance(report, Progress) for report in head.reports))
    head.verdicts["job"] = Verdict.CANCELLED
    work.cancel()
    await within(asyncio.wait({work}))
    assert isinstance(head.last("job"), Stopped)
    assert engine.events == []


async def test_a_request_let_go_of_makes_the_run_ask_at_once(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    """The lease is so long that no report is due for hours, and the stage does not change."""
    gate = Gate()
    engine.script["run", "job"] = stepping(gate)
    work = asyncio.create_task(replica.generate(task(lease_s=1e6)))
    await reached(gate)
    await head.until(lambda: head.last("job") == Progress(lease=task().lease, stage="generating", percent=50))
    head.verdicts["job"] = Verdict.CANCELLED
    work.cancel()
    await within(asyncio.wait({work}))
    assert work.cancelled()
    assert isinstance(head.last("job"), Stopped)


async def test_a_request_let_go_of_is_finished_if_the_head_wants_it(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    """The dispatcher has died; nobody cancelled. Not even a second cancellation may leave the GPU's thread alone."""
    gate = Gate()
    engine.script["run", "job"] = gate
    work = asyncio.create_task(replica.generate(task()))
    await reached(gate)
    before = len(head.reports)
    work.cancel()
    await head.until(lambda: len(head.reports) > before)
    work.cancel()
    await asyncio.wait({work}, timeout=0)
    gate.opened.set()
    await head.until(lambda: isinstance(head.last("job"), Outcome))


async def test_a_lost_lease_is_reported_on_no_more(
    replica: Replica, engine: ScriptedEngine, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    gate = Gate()
    engine.script["run", "job"] = stepping(gate)
    work = asyncio.create_task(replica.generate(task()))
    await reached(gate)
    head.verdicts["job"] = Verdict.LEASE_LOST
    await within(work)
    assert {type(report) for report in head.reports} == {Started, Progress}
    assert [seen.method for seen in store.seen] == ["GET"]


async def test_the_end_is_delivered_when_the_head_comes_back(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    gate = Gate()
    engine.script["run", "job"] = gate
    work = asyncio.create_task(replica.generate(task()))
    await reached(gate)
    head.deaf = {Progress, Outcome}
    gate.opened.set()
    await head.until(lambda: any(isinstance(report, Outcome) for report in head.refused))
    head.deaf = set()
    await within(work)
    assert isinstance(head.last("job"), Outcome)
    assert (await replica.stats())["runs"] == 1


# -------------------------------------------------------------------- failing


def raising(error: Exception) -> Callable[..., None]:
    def play(*_: object) -> None:
        raise error

    return play


@pytest.mark.parametrize("stage", ["prepare", "run", "publish"])
@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (Fault(FailureCode.NO_FACE_FOUND, "There is no face."), "no_face_found", False),
        (RuntimeError("a bug"), "internal_error", True),
    ],
)
async def test_a_fault_is_reported_and_the_next_job_runs(
    replica: Replica,
    engine: ScriptedEngine,
    head: Head,
    task: Callable[..., Task],
    stage: str,
    error: Exception,
    code: str,
    transient: bool,
) -> None:
    engine.script[stage, "one"] = raising(error)
    await within(replica.generate(task("one")))
    failure = head.last("one")
    assert isinstance(failure, Failure)
    assert (failure.code, failure.transient) == (code, transient)
    assert str(error) in failure.message
    assert stage in failure.timings
    await within(replica.generate(task("two")))
    assert isinstance(head.last("two"), Outcome)
    await replica.check_health()
    assert not any(workdir.exists() for workdir in engine.workdirs)


@pytest.mark.parametrize(("route", "what"), [("/image", "fetch the input"), ("/out", "upload the video")])
async def test_a_store_that_refuses_is_a_transient_fault_without_the_signed_url(
    replica: Replica,
    head: Head,
    store: HttpSource,
    task: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    what: str,
) -> None:
    monkeypatch.setattr(transfer_module, "GET_TRIES", 2)
    monkeypatch.setattr(transfer_module, "PUT_TRIES", 2)
    store.routes[route] = reply(403)
    await within(replica.generate(task()))
    failure = head.last("job")
    assert (failure.code, failure.transient) == ("storage_unavailable", True)
    assert failure.message == f"Could not {what}: 403."


async def test_links_that_expired_while_the_job_waited_are_made_anew(
    replica: Replica, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    """A job may wait for a GPU for a week; S3's links live for a day as we make them."""
    store.routes["/image"] = store.routes["/out"] = reply(403)
    store.routes["/fresh/image"], store.routes["/fresh/out"] = reply(200, b"pixels"), reply(200)
    head.fresh = freshened(store)
    await within(replica.generate(task()))
    assert isinstance(head.last("job"), Outcome)
    assert {seen.target for seen in store.seen} == {"/fresh/image", "/fresh/out"}


async def test_a_bucket_that_is_mended_in_time_gets_the_video(
    replica: Replica, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    """Its key was rotated while the GPU worked: links signed with the old one are refused, renewed ones are not."""
    refusals = iter([401, 403, 404])
    statuses: list[int] = []

    async def refuse(seen: Any, writer: Any) -> None:
        statuses.append(next(refusals, 200))
        await reply(statuses[-1])(seen, writer)

    store.routes["/out"] = refuse
    await within(replica.generate(task()))
    assert isinstance(head.last("job"), Outcome)
    assert statuses == [401, 403, 404, 200]
    # Once at the start, once after each refusal.
    assert head.renewed == 4


def freshened(store: HttpSource) -> Callable[[Task], Task]:
    def fresh(task: Task) -> Task:
        inputs = {
            name: item.model_copy(update={"url": store.url("/fresh/image")}) for name, item in task.inputs.items()
        }
        return task.model_copy(update={"inputs": inputs, "output_url": store.url("/fresh/out")})

    return fresh


async def test_a_store_that_stumbles_once_does_not_cost_the_attempt(
    replica: Replica, head: Head, store: HttpSource, task: Callable[..., Task]
) -> None:
    answers = iter([reply(503), reply(200)])

    async def stumble(seen: Any, writer: Any) -> None:
        await next(answers)(seen, writer)

    store.routes["/out"] = stumble
    await within(replica.generate(task()))
    assert isinstance(head.last("job"), Outcome)
    assert [seen.body for seen in store.seen if seen.method == "PUT"] == [VIDEO, VIDEO]


async def test_out_of_memory_twice_in_a_row_breaks_the_replica(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    for name in ("one", "three", "four"):
        engine.script["run", name] = raising(OutOfMemory("no room"))
    for name in ("one", "two", "three"):
        await within(replica.generate(task(name)))
        await replica.check_health()
    await within(replica.generate(task("four")))
    with pytest.raises(Unhealthy):
        await replica.check_health()
    assert engine.freed == 3
    assert [type(head.last(name)) for name in ("one", "two", "three", "four")] == [Failure, Outcome, Failure, Failure]
    assert head.last("four").code == "out_of_memory"


async def test_memory_that_cannot_be_freed_breaks_the_replica_but_not_the_report(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    """A dead CUDA context often shows first in ``empty_cache``."""
    engine.script["run", "job"] = raising(OutOfMemory("no room"))
    engine.script["free", ""] = raising(RuntimeError("CUDA error: unspecified launch failure"))
    await within(replica.generate(task()))
    assert head.last("job").code == "out_of_memory"
    with pytest.raises(Unhealthy, match="unspecified launch failure"):
        await replica.check_health()


async def test_a_lost_device_breaks_the_replica(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    engine.script["run", "job"] = raising(DeviceLost("the device is gone"))
    await within(replica.generate(task()))
    assert (head.last("job").code, head.last("job").transient) == ("device_lost", True)
    with pytest.raises(Unhealthy, match="the device is gone"):
        await replica.check_health()


async def test_a_broken_replica_takes_up_no_more_tasks(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    """Serve needs half a minute to replace it; until then it would use up all attempts of every job it gets."""
    engine.script["run", "one"] = raising(DeviceLost("the device is gone"))
    await within(replica.generate(task("one")))
    await within(replica.generate(task("two")))
    assert head.of("two") == []
    assert (await replica.stats())["runs"] == 1


async def test_a_job_that_waited_for_a_device_now_lost_does_not_touch_it(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    gate = Gate()

    def lose(*_: object) -> None:
        gate()
        raise DeviceLost("the device is gone")

    engine.script["run", "one"] = lose
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(gate)
    second = asyncio.create_task(replica.generate(task("two")))
    await head.until(lambda: any(isinstance(r, Progress) and r.stage == "waiting_for_gpu" for r in head.of("two")))
    gate.opened.set()
    await within(asyncio.gather(first, second))
    assert ("run", "two", "begin") not in engine.events
    assert (head.last("two").code, head.last("two").blameless) == ("worker_lost", True)
    assert (head.last("one").code, head.last("one").blameless) == ("device_lost", False)


async def test_a_job_that_has_to_be_alone_starts_when_the_others_have_left(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    gate = Gate()
    engine.script["run", "one"] = gate
    first = asyncio.create_task(replica.generate(task("one")))
    await reached(gate)
    alone = asyncio.create_task(replica.generate(task("two", alone=True)))
    third = asyncio.create_task(replica.generate(task("three")))
    await asyncio.sleep(0)
    gate.opened.set()
    await within(asyncio.gather(first, alone, third))
    order = [(report.lease.job_id, report.kind) for report in head.reports if report.kind in ("started", "finished")]
    assert order == [(name, kind) for name in ("one", "two", "three") for kind in ("started", "finished")]


async def test_a_run_out_of_time_ends_at_its_next_step(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task]
) -> None:
    engine.script["run", "job"] = stepping(Gate())
    await within(replica.generate(task(timeout_s=0.3)))
    assert (head.last("job").code, head.last("job").transient) == ("timed_out", True)
    await replica.check_health()


async def test_a_wedged_thread_breaks_the_replica(
    replica: Replica, engine: ScriptedEngine, head: Head, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "STEP_GRACE_S", 0.05)
    monkeypatch.setitem(MODELS, "scripted", spec_of(engine, timeout_s=0.3))
    gate = Gate()
    engine.script["run", "job"] = gate
    # Its own limit is far away: a slow machine would reach that one between two steps, where no thread is wedged.
    await within(replica.generate(task(timeout_s=60)))
    assert (head.last("job").code, head.last("job").transient) == ("timed_out", True)
    with pytest.raises(Unhealthy):
        await replica.check_health()
    gate.opened.set()


@pytest.mark.parametrize("stage", ["prepare", "publish"])
async def test_a_stage_on_the_cpu_that_hangs_ends_the_job_too(
    replica: Replica,
    engine: ScriptedEngine,
    head: Head,
    task: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """The heartbeat goes on meanwhile, so without a limit the job would be ``processing`` for ever."""
    monkeypatch.setattr(replica_module, "STEP_GRACE_S", 0.05)
    monkeypatch.setitem(MODELS, "scripted", spec_of(engine, timeout_s=0.3))
    gate = Gate()
    engine.script[stage, "job"] = gate
    await within(replica.generate(task(timeout_s=0.3)))
    assert (head.last("job").code, head.last("job").transient) == ("timed_out", True)
    gate.opened.set()


@pytest.mark.parametrize("stage", ["prepare", "run", "publish"])
async def test_a_client_who_gives_a_run_little_time_breaks_no_replica(
    replica: Replica,
    engine: ScriptedEngine,
    head: Head,
    task: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """By the model's limit the thread has plenty of time until its next step."""
    monkeypatch.setattr(replica_module, "STEP_GRACE_S", 0.05)
    engine.script[stage, "job"] = lambda *_: time.sleep(0.5)
    await within(replica.generate(task(timeout_s=0.1)))
    assert head.last("job").code == "timed_out"
    await replica.check_health()


async def test_a_download_that_never_ends_ends_the_job_too(
    replica: Replica, head: Head, store: HttpSource, task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "STEP_GRACE_S", 0.05)
    store.routes["/image"] = stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npix")
    await within(replica.generate(task(timeout_s=0.3)))
    assert (head.last("job").code, head.last("job").transient) == ("timed_out", True)
