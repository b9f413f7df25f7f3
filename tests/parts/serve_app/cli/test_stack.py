"""``up``, ``demo`` and ``migrate``: what the commands make of a stack. The stack itself is tested end to end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import wave
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import ray
from PIL import Image
from typer.testing import CliRunner

from deployments.registry import MODELS
from serve_app.cli import app, samples, stack
from serve_app.client import ModelInfo
from serve_app.intake.probe import probe
from serve_app.local import stack as local
from serve_app.local.stack import Endpoints
from serve_app.settings import ConfigurationError
from tests.parts.serve_app.cli.invocation import INTERRUPTIBLE
from tests.parts.serve_app.cli.live_service import API_KEY, VIDEO, LiveService

ROOT = Path(__file__).parents[4]
CONFIG = f"--config={ROOT / 'configs' / 'local.yaml'}"
DASHBOARD = "http://127.0.0.1:8265"
TOKEN = "ray-token"

#: ``video-api up`` on a stack that says what is done to it, and takes a line on stdin to end.
UP = f"""
{INTERRUPTIBLE}
import contextlib, os, sys, threading
# A test suite under nohup ignores this one.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "NOHUP" in os.environ else signal.SIG_DFL)
from serve_app.local import stack as local
from serve_app.cli import main

@contextlib.contextmanager
def running(config):
    try:
        print("starting", flush=True)
        if "HANG" in os.environ:
            threading.Event().wait()
        yield local.Endpoints(
            api_url=os.environ["URL"],
            api_key="{API_KEY}",
            dashboard_url="{DASHBOARD}",
            dashboard_token="{TOKEN}",
            webhook_secret="w",
        )
    finally:
        print("ending", flush=True)
        sys.stdin.readline()
        print("ended", flush=True)

local.running = running
main()
"""

Start = Callable[..., "subprocess.Popen[str]"]
#: Whatever happens, such a process ends after this, and who reads its output goes on.
LIMIT_S = 120


@pytest.fixture
def start(service: LiveService) -> Iterator[Start]:
    started = []

    def up(**environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", UP, "up", CONFIG, "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "URL": service.url, "PYTHONPATH": str(ROOT), **environment},
        )
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        started.append((process, limit))
        return process

    yield up
    for process, limit in started:
        limit.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_ends_in_order_at_a_signal(start: Start, service: LiveService, number: signal.Signals) -> None:
    up = start()
    assert up.stdout is not None
    assert up.stdout.readline() == "starting\n"
    endpoints = json.loads(up.stdout.readline())
    assert endpoints == {
        "api_url": service.url,
        "api_key": API_KEY,
        "dashboard_url": DASHBOARD,
        "dashboard_token": TOKEN,
        "webhook_secret": "w",
    }

    up.send_signal(number)
    assert up.stdout.readline() == "ending\n"
    # An impatient second one does not tear the ending apart.
    up.send_signal(number)

    assert up.communicate("\n")[0] == "ended\n"
    assert up.returncode == 0


def test_up_outlives_its_terminal_under_nohup(start: Start) -> None:
    up = start(NOHUP="1")
    assert up.stdout is not None
    assert up.stdout.readline() == "starting\n"
    assert "api_url" in up.stdout.readline()

    ignored = next(line for line in Path(f"/proc/{up.pid}/status").read_text().splitlines() if "SigIgn" in line)
    assert int(ignored.split()[1], 16) & 1 << signal.SIGHUP - 1
    up.send_signal(signal.SIGHUP)
    up.send_signal(signal.SIGTERM)

    assert up.communicate("\n")[0] == "ending\nended\n"
    assert up.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_cleans_up_when_stopped_while_it_starts(start: Start, number: signal.Signals) -> None:
    up = start(HANG="")
    assert up.stdout is not None
    assert up.stdout.readline() == "starting\n"

    up.send_signal(number)

    assert up.communicate("\n")[0] == "ending\nended\n"
    assert up.returncode == 0


def test_up_tells_where_things_are(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretending(service, monkeypatch):
        # A signal that comes while a finalizer runs is noticed all the same.
        monkeypatch.setattr("serve_app.cli.stack.Stop.wait", lambda stop: os.kill(os.getpid(), signal.SIGTERM))
        result = CliRunner().invoke(app, ["up", CONFIG])

    assert result.exit_code == 0
    for told in (f"{service.url}/docs", API_KEY, DASHBOARD, "submit ltx2 image=photo.jpg"):
        assert told in result.stdout


def test_up_tells_what_goes_wrong_later(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    tell = stack._tell

    def telling(*arguments: Any) -> None:
        tell(*arguments)
        told.set()

    def wait(_: stack.Stop) -> None:
        service.cluster.states = {}
        assert told.wait(LIMIT_S)
        raise stack.Stopped

    monkeypatch.setattr(stack, "_tell", telling)
    monkeypatch.setattr(stack.Stop, "wait", wait)
    with pretending(service, monkeypatch):
        result = CliRunner().invoke(app, ["up", CONFIG])

    assert result.exit_code == 0
    assert re.search(r"^\d\d:\d\d:\d\d ray: ltx2 is not deployed", result.stderr, re.MULTILINE)


def test_up_names_the_sample_that_demo_has_left(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    samples.make("image", folder / "out")
    with pretending(service, monkeypatch):
        monkeypatch.setattr(stack.Stop, "wait", lambda stop: os.kill(os.getpid(), signal.SIGTERM))
        result = CliRunner().invoke(app, ["up", CONFIG])
    assert "submit ltx2 image=out/sample.jpg -o video.mp4" in result.stdout


@pytest.mark.parametrize(("command", "name"), [("up", "local"), ("demo", "local"), ("head", "production")])
def test_outside_of_a_checkout_it_is_said_what_to_do(folder: Path, command: str, name: str) -> None:
    result = CliRunner().invoke(app, [command])

    assert result.exit_code == 2
    assert result.stderr == (
        f"error: there is no configs/{name}.yaml: run this in a checkout of video-api, or name a file by --config\n"
    )


@pytest.mark.parametrize("command", ["up", "demo"])
def test_what_cannot_work_is_said_before_anything_starts(
    command: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "empty.pth").touch()
    monkeypatch.setenv("LTX2_MODEL_PATH", "/nowhere")
    monkeypatch.setenv("WAV2LIP_MODEL_PATH", "empty.pth")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x")

    result = CliRunner().invoke(app, [command, CONFIG])

    assert result.exit_code == 2
    assert "LTX2_MODEL_PATH=/nowhere: /nowhere does not exist" in result.stderr
    assert "WAV2LIP_MODEL_PATH=empty.pth: empty.pth is an empty file" in result.stderr
    assert 'DATABASE_URL: connection failed: connection to server at "127.0.0.1", port 1 failed' in result.stderr
    assert "secret" not in result.output
    assert not ray.is_initialized()


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_configuration_error_is_one_line_and_exit_code_2(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def running(_: Path) -> Iterator[Endpoints]:
        raise ConfigurationError("port 8000 is in use; set PORT to another")
        yield

    monkeypatch.setattr(local, "running", running)
    result = CliRunner().invoke(app, [command, CONFIG])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "error: port 8000 is in use; set PORT to another"


def test_demo_saves_a_video_of_each_model(service: LiveService, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with pretending(service, monkeypatch):
        result = CliRunner().invoke(app, ["demo", CONFIG, "--json"])

    assert result.exit_code == 0, result.output
    made = [json.loads(line) for line in result.stdout.splitlines()]
    # And one of a chain.
    assert [video["job"]["model"] for video in made] == [*MODELS, "wav2lip"]
    assert "video" in made[-1]["job"]["source_jobs"]
    assert all((folder / video["path"]).read_bytes() == VIDEO for video in made)
    assert "generating 42%" in result.stderr


def test_the_pair_of_the_demo_is_chosen_by_what_models_take() -> None:
    def model(name: str, *inputs: tuple[str, ...], params: Sequence[str] = ()) -> ModelInfo:
        return {
            "model": name,
            "title": "",
            "description": "",
            "inputs": [
                {"name": kinds[0], "kinds": list(kinds), "description": "", "max_bytes": 1, "max_seconds": None}
                for kinds in inputs
            ],
            "params_schema": {"properties": {name: {} for name in params}},
        }

    still, sound = model("still", ("image",)), model("sound", ("image",), ("audio",))
    mover = model("mover", ("image",), params=["prompt"])
    talker = model("talker", ("video", "image"), ("audio", "video"))

    assert stack.talking_pair([still, talker, sound, mover]) == (mover, talker)
    assert stack.talking_pair([still, sound, talker]) is None
    assert stack.talking_pair([still, sound, mover]) is None


def test_demo_fails_when_a_job_does(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.worker.fails = True
    with pretending(service, monkeypatch):
        result = CliRunner().invoke(app, ["demo", CONFIG])

    assert result.exit_code == 1
    assert "not_finite" in result.stderr


def test_demo_passes_over_what_it_has_no_sample_for(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(samples, "_MAKERS", {})
    with pretending(service, monkeypatch):
        result = CliRunner().invoke(app, ["demo", CONFIG])

    assert result.exit_code == 0
    assert "ltx2: passed over" in result.stderr
    assert not (folder / "out").exists()


def test_the_sample_is_the_same_everywhere(tmp_path: Path) -> None:
    first, second = samples.make("image", tmp_path / "a"), samples.make("image", tmp_path / "b")

    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1280, 720))


async def test_the_samples_are_what_intake_lets_in(tmp_path: Path) -> None:
    for kind in ("image", "video", "audio"):
        path = samples.make(kind, tmp_path)
        assert path is not None
        found = await probe(path)
        assert found.kind == kind
        assert found.duration_s in (None, pytest.approx(samples.SECONDS, abs=0.1))


def test_the_voice_speaks(tmp_path: Path) -> None:
    path = samples.make("audio", tmp_path)
    assert path is not None
    with wave.open(str(path)) as sound:
        loudest = max(abs(sample) for sample in array("h", sound.readframes(sound.getnframes())))
    assert loudest > 5000


def test_a_kind_whose_package_is_missing_has_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert samples.make("audio", tmp_path) is None


def test_migrate_makes_the_tables(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("CREATE DATABASE cli_migrate")
    url = postgres.replace("/postgres?", "/cli_migrate?")
    monkeypatch.setenv("DATABASE_URL", url)

    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


@pytest.mark.parametrize(
    ("url", "said"),
    [("", "set DATABASE_URL"), ("mysql://x", "DATABASE_URL"), ("postgresql://127.0.0.1:1/x", "DATABASE_URL: ")],
)
def test_migrate_without_a_database_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    result = CliRunner().invoke(app, ["migrate"])

    assert result.exit_code == 2
    assert said in result.stderr


@contextmanager
def pretending(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stack that the commands start is the test's service; signals are as before afterwards."""

    @contextmanager
    def running(_: Path) -> Iterator[Endpoints]:
        yield Endpoints(
            api_url=service.url, api_key=API_KEY, dashboard_url=DASHBOARD, dashboard_token=TOKEN, webhook_secret="w"
        )

    monkeypatch.setattr(local, "running", running)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before
