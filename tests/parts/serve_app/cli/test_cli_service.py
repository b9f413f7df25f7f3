"""The commands about the service as a whole, and what all commands have in common."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deployments.registry import MODELS
from serve_app.cli import app, display
from tests.parts.serve_app.cli.invocation import Run, parsed
from tests.parts.serve_app.cli.live_service import API_KEY, LiveService
from tests.parts.serve_app.jobs.samples import deployed


def test_models_shows_inputs_and_parameters(run: Run) -> None:
    shown = run("models").stdout

    assert "image" in shown
    assert "negative_prompt" in shown
    assert "ltx2" in {model["model"] for model in parsed(run("models", "--json"))}


def test_models_shows_what_each_deployment_can_make(run: Run, service: LiveService) -> None:
    ability = {"deployment": "ltx2", "model": "ltx2", "weights": "2.3", "random_weights": True}
    ability |= {"variants": {"fast": 252_764_160, "standard": 9}, "default_variant": "fast"}
    service.do(deployed(service.services.engine, "ltx2", 80, ability))
    service.do(deployed(service.services.engine, "ltx2-24gb", 24, {**ability, "variants": {"fast": 0}}))
    service.do(deployed(service.services.engine, "wav2lip"))
    rows = [re.split(r" {2,}", line) for line in run("models").stdout.splitlines()]

    assert ["DEPLOYMENT", "GPU", "RECIPE", "UP TO, width x height x (frames + 7)", "WEIGHTS", "SAID"] in rows
    (fast, standard), (silent,) = ([row for row in rows if row[0] == name and len(row) == 6] for name in MODELS)
    assert fast[1:-1] == ["80 GiB", "fast (default)", "252,764,160", "2.3 random"]
    assert datetime.strptime(fast[-1].rpartition(" ")[0], "%Y-%m-%d %H:%M:%S")
    assert standard[1:4] == ["80 GiB", "standard", "9"]
    (unable,) = (row for row in rows if row[0] == "ltx2-24gb")
    assert unable[1:4] == ["24 GiB", "none", "-"]
    assert silent == ["wav2lip", "any", "not known yet", "-", "-", "on paper"]


def test_health_is_exit_code_3_when_a_part_is_down(
    run: Run, service: LiveService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.shared.FRESH_S", 0)
    health = parsed(run("health", "--json"))
    assert (health["database"], health["storage"]) == ("ok", "ok")

    service.cluster.states = {}
    result = run("health")

    assert result.exit_code == 3
    assert "is not deployed" in result.stdout


def test_help_has_each_command_under_a_heading() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    headings = [found for line in shown.splitlines() if (found := line.strip("╭╮─ ")) and line.startswith("╭")]
    assert sorted(headings) == ["A cluster", "Jobs", "Keys and webhooks", "Options", "This machine"]


def test_nobody_there_is_exit_code_3() -> None:
    with socket.socket() as taken:
        # Bound but not listening: nobody else can take it, and connections are refused.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["list", "--url", url])

    assert result.exit_code == 3
    assert ".." not in result.stderr
    assert url in result.stderr
    assert "VIDEO_API_URL" in result.stderr


def test_a_wrong_key_is_refused_with_advice(run: Run) -> None:
    result = run("list", key="wrong")

    assert result.exit_code == 4
    assert result.stderr == "error: unauthorized: Invalid API key. Give --key or set VIDEO_API_KEY.\n"


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "ftp://host", "http://host:port", "http://a b", "localhost:8000"]
)
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    result = CliRunner().invoke(app, ["list", "--url", url])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {url!r} is no address of an API: ")
    assert result.stderr.endswith(". Give --url, or set VIDEO_API_URL or PORT.\n")
    assert ".." not in result.stderr


@pytest.mark.parametrize("key", ["\u201cvk_secret\u201d", "vk_secret\nx"])
def test_a_key_that_is_none_is_a_usage_error_and_is_not_shown(key: str) -> None:
    result = CliRunner().invoke(app, ["list", "--url", "http://127.0.0.1:1", "--key", key])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: this is no API key: ")
    assert "secret" not in result.stderr


@pytest.mark.parametrize("command", [("node", "token"), ("nodes",), ("node", "revoke", "1")])
def test_commands_beside_a_head_say_so_on_a_laptop(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command])

    assert result.exit_code == 2
    assert "API_KEY: required in production" in result.stderr
    assert result.stderr.endswith(
        ". This command is for the shell of the head, where its variables are set (on Railway: `railway ssh`).\n"
    )


def test_health_shows_a_model_that_is_down() -> None:
    found = {
        "api": "ok",
        "models": {"ltx2": "down", "wav2lip": "ok"},
        "queues": {"ltx2": {"pending": 1}, "wav2lip": {"pending": 0}},
        "details": {"ltx2": "LTX2_MODEL_PATH=/nowhere: does not exist"},
    }
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(display.health(found))
    lines = console.export_text().splitlines()
    assert any("ltx2" in line and "down" in line for line in lines)
    assert any("LTX2_MODEL_PATH=/nowhere" in line for line in lines)


@pytest.mark.parametrize("source", ["VIDEO_API_KEY", "API_KEY", ".env", "secrets.json"])
def test_where_the_key_comes_from(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, folder: Path, source: str
) -> None:
    monkeypatch.setenv("VIDEO_API_URL", service.url)
    if source == ".env":
        (folder / ".env").write_text(f"API_KEY={API_KEY}\n")
    elif source == "secrets.json":
        (folder / ".data").mkdir()
        (folder / ".data" / "secrets.json").write_text(json.dumps({"api_key": API_KEY}))
    else:
        monkeypatch.setenv(source, API_KEY)

    assert CliRunner().invoke(app, ["list"]).exit_code == 0


def test_help_lists_the_exit_codes() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output

    for code in ("0 ok", "1 the job failed", "2 usage", "3 API unreachable", "4 API refused", "5 the job was", "124"):
        assert code in shown


def test_a_reader_that_has_enough_is_no_error(service: LiveService) -> None:
    """``video-api list | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "--url", service.url, "--key", API_KEY, "models"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_starts_without_the_service() -> None:
    """``video-api status`` must not pay for Ray, and works where only the client is installed."""
    heavy = (
        "{'ray', 'torch', 'pydantic', 'fastapi', 'sqlalchemy', 'PIL', 'serve_app.local.stack', 'serve_app.settings'}"
    )
    code = f"import sys, serve_app.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "[]"


ROOT = Path(__file__).parents[4]
