"""``video-api up``, ``demo`` and ``migrate``: the commands that run the service instead of calling it."""

import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from dotenv import load_dotenv
from rich.console import Group
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from serve_app.cli import display, samples
from serve_app.cli.progress import showing_job
from serve_app.cli.submission import request_video
from serve_app.cli.terminal import Code, Session, UsageProblem
from serve_app.cli.watch import watching
from serve_app.client import Client, Created, ModelInfo
from serve_app.jobs.database import migrate
from serve_app.local import stack as local
from serve_app.local.stack import Endpoints
from serve_app.preflight import database_fault
from serve_app.settings import ConfigurationError, Settings

_EXAMPLES = {"image": "photo.jpg", "video": "clip.mp4", "audio": "voice.wav"}


class Stopped(BaseException):
    """A signal asks this process to end. No ``Exception``, so that nothing on the way handles it."""


class Stop:
    """Turns SIGINT, SIGTERM and SIGHUP into one :class:`Stopped` in the main thread.

    One only: ending in order takes seconds, and a second Ctrl-C must not tear it apart and leave servers behind.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # nohup says that a closed terminal is no reason to stop.
        self._before = {
            number: handler for number in signals if (handler := signal.getsignal(number)) is not signal.SIG_IGN
        }

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Install the handlers. Again after ``ray.init``, which puts its own in their place."""
        for number in self._before:
            signal.signal(number, self._handle)

    def wait(self) -> None:
        """Until a signal comes. Raises :class:`Stopped`, always."""
        self._asked.wait()
        raise Stopped

    def check(self) -> None:
        """Raises :class:`Stopped` if a signal came while something swallowed it, such as a finalizer."""
        if self._asked.is_set():
            raise Stopped

    def _handle(self, *_: object) -> None:
        if not self._asked.is_set():
            self._asked.set()
            raise Stopped


def up(session: Session, config: Path) -> None:
    """Run the service until a signal comes."""
    try:
        with Stop() as stop, _running(session, config, stop) as endpoints:
            _greet(session, endpoints)
            with watching(endpoints.api_url, partial(_tell, session)):
                stop.wait()
    # Ray's handler of SIGTERM, in the moment before ours is back.
    except (Stopped, SystemExit):
        session.err.print("stopped")


def demo(session: Session, config: Path, out: Path) -> Code:
    """Make a video with every model that a sample can be made for, and one with two of them if there are two that make
    a portrait talk. Returns the exit code."""
    code = Code.OK
    try:
        with (
            Stop() as stop,
            _running(session, config, stop) as endpoints,
            Client(endpoints.api_url, endpoints.api_key) as client,
        ):
            models = client.models()
            for model in models:
                stop.check()
                if not _show_off(session, client, model, out):
                    code = Code.JOB_FAILED
            stop.check()
            if (pair := talking_pair(models)) and not _make_talk(session, client, *pair, out):
                code = Code.JOB_FAILED
    except (Stopped, SystemExit):
        session.err.print("stopped")
        return Code.INTERRUPTED
    if code is Code.OK and not session.json:
        session.out.print(f"\nNext: [bold]{_program()} up[/] keeps the service running. README.md goes on from there.")
    return code


def migrate_database() -> None:
    """Apply the migrations to ``DATABASE_URL``."""
    load_dotenv(".env")
    try:
        url = Settings.load("local").database_url
    except ConfigurationError as error:
        raise UsageProblem(str(error)) from None
    if not url:
        raise UsageProblem("set DATABASE_URL (`up` and `demo` migrate their own database)")
    if fault := database_fault(url):
        raise UsageProblem(fault)
    try:
        migrate(url)
    except DBAPIError as error:
        raise UsageProblem(f"DATABASE_URL: {str(error.orig).splitlines()[0]}") from None


@contextmanager
def _running(session: Session, config: Path, stop: Stop) -> Iterator[Endpoints]:
    with ExitStack() as stack:
        try:
            with _busy(session, "starting PostgreSQL, Ray and the application"):
                endpoints = stack.enter_context(local.running(config))
        except ConfigurationError as error:
            raise UsageProblem(str(error)) from None
        stop.listen()
        stop.check()
        try:
            yield endpoints
        finally:
            session.err.print("stopping")


def _busy(session: Session, what: str) -> AbstractContextManager[object]:
    if session.err.is_terminal:
        return session.err.status(what)
    session.err.print(what)
    return nullcontext()


def _greet(session: Session, endpoints: Endpoints) -> None:
    with Client(endpoints.api_url, endpoints.api_key) as client:
        model = client.models()[0]
    inputs = " ".join(f"{item['name']}={_example(item['kinds'][0])}" for item in model["inputs"])
    places = Table.grid(padding=(0, 2))
    for name, value in (
        ("API", endpoints.api_url),
        ("API key", endpoints.api_key),
        ("Webhook secret", endpoints.webhook_secret),
        ("Documentation", f"{endpoints.api_url}/docs"),
        ("Ray dashboard", endpoints.dashboard_url),
        ("Ray token", endpoints.dashboard_token),
    ):
        places.add_row("", name, Text(value, style="bold"))
    program = _program()
    hints = (
        f"{program} submit {model['model']} {inputs} -o video.mp4",
        f"{program} list",
        f'curl -H "Authorization: Bearer {endpoints.api_key}" {endpoints.api_url}/api/v1/models',
    )
    shown = Group(
        Text("video-api is up", style="bold green"),
        places,
        Text("\nTry in another terminal, in this folder:"),
        *(Text(f"  {hint}", style="cyan", no_wrap=True, overflow="ignore") for hint in hints),
        Text("\nCtrl-C stops it."),
    )
    session.show(asdict(endpoints), shown)


def _example(kind: str) -> str:
    """A file of this kind to name in an example: what ``demo`` has left, if it ran here."""
    sample = samples.path(kind, Path("out"))
    return str(sample) if sample.is_file() else _EXAMPLES[kind]


def _tell(session: Session, part: str, reason: str | None) -> None:
    """A change that the watch has seen, beside the time it was seen."""
    text = f"{datetime.now():%H:%M:%S} {part}: {reason or 'works again'}"
    session.err.print(text, style="yellow" if reason else "green", markup=False, soft_wrap=True)


def _show_off(session: Session, client: Client, model: ModelInfo, out: Path) -> bool:
    """One video of one model, by way of everything that a client has. False if the job did not complete."""
    name = model["model"]
    values = {}
    for item, kind in zip(model["inputs"], _takes(model), strict=True):
        sample = samples.make(kind, out)
        if sample is None:
            session.err.print(f"{name}: passed over, there is no sample of its input {item['name']}")
            return True
        values[item["name"]] = str(sample)
    session.err.print(f"\n{model['title']}: {_command(name, values)}", soft_wrap=True)
    began = time.monotonic()
    return _finish(session, client, [_ask(client, name, values)], out, began)


def talking_pair(models: Sequence[ModelInfo]) -> tuple[ModelInfo, ModelInfo] | None:
    """A model that lets a picture move and one that lets what moves talk, by what they take; None: one is missing."""
    movers = [each for each in models if _takes(each) == ["image"] and "prompt" in _params(each)]
    talkers = [each for each in models if _takes(each) == ["video", "audio"]]
    return (movers[0], talkers[0]) if movers and talkers else None


def _takes(model: ModelInfo) -> Sequence[str]:
    """What each input is for: the first of its kinds, others only stand in for it."""
    return [item["kinds"][0] for item in model["inputs"]]


def _params(model: ModelInfo) -> Mapping[str, object]:
    found: Mapping[str, object] = model["params_schema"].get("properties", {})
    return found


def _make_talk(session: Session, client: Client, mover: ModelInfo, talker: ModelInfo, out: Path) -> bool:
    """A portrait moves, and what moves talks: a chain of two jobs. As above."""
    portrait, speech = samples.make(samples.PORTRAIT, out), samples.make("audio", out)
    if portrait is None or speech is None:
        session.err.print("talking portrait: passed over, there is no sample of a face or a voice")
        return True
    began = time.monotonic()
    shot = {mover["inputs"][0]["name"]: str(portrait), "prompt": "She looks into the camera and talks."}
    if "duration" in _params(mover):
        shot["duration"] = "1"
    moving = _ask(client, mover["model"], shot)
    video, audio = (item["name"] for item in talker["inputs"])
    lips = {video: f"job:{moving['job_id']}", audio: str(speech)}
    if client.health()["weights"].get(mover["model"]) == "random" and "face_box" in _params(talker):
        # In noise there is no face to be found.
        lips["face_box"] = "[0, 64, 0, 64]"
    session.err.print(f"\nA portrait that talks: {_command(mover['model'], shot)}", soft_wrap=True)
    session.err.print(f"and of its video: {_command(talker['model'], lips)}", soft_wrap=True)
    return _finish(session, client, [moving, _ask(client, talker["model"], lips)], out, began)


def _command(model: str, values: Mapping[str, str]) -> str:
    given = " ".join(shlex.quote(f"{key}={value}") for key, value in values.items())
    return f"{_program()} submit {model} {given} --wait"


def _ask(client: Client, model: str, values: Mapping[str, str]) -> Created:
    return request_video(client, model, values, (), {}, lambda done, total: None)


def _finish(session: Session, client: Client, asked: Sequence[Created], out: Path, began: float) -> bool:
    """Follow each job until it has ended, and save the video of the last. False if one did not complete."""
    for created in asked:
        with showing_job(session.err) as on_change:
            job = client.wait(created["job_id"], on_change, poll_s=0.5)
        if job["status"] != "completed":
            reason = f"{job.get('error_code')}: {job.get('error_message')}"
            session.err.print(
                f"{created['model']}: {job['status']}: {reason}", style="red", markup=False, soft_wrap=True
            )
            return False
    path = out / f"{job['job_id']}.mp4"
    client.download(job["job_id"], path)
    seconds = time.monotonic() - began
    lines = [Text(f"{path}: {display.video(job)}; {seconds:.1f} s from upload to file")]
    if "poster_url" in job:
        poster = path.with_suffix(".webp")
        client.download_poster(job, poster)
        lines.append(Text(f"{poster}: its first frame"))
    if job.get("notes", {}).get("random_weights"):
        weights = "Its weights are random, so the picture is noise. README.md, `Weights`, says how to use real ones."
        lines.append(Text(weights, style="yellow"))
    session.show({"path": str(path), "seconds": round(seconds, 1), "job": job}, Group(*lines))
    return True


def _program() -> str:
    """How to call this program from here."""
    return "video-api" if shutil.which("video-api") else sys.argv[0]
