"""The package without any extra: what it brings, what it can do, and how the rest says what it lacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.client_install import ClientInstall, install_client
from tests.parts.serve_app.cli.live_service import API_KEY, VIDEO, LiveService

MEGABYTE = 1_000_000
#: Line 5 asks for a field that there is none of.
MISTAKEN = """
from serve_app.client import Client

with Client("http://127.0.0.1:8000", "key") as client:
    print(client.job("1")["result"])
    print(client.job("1")["status"].upper())
"""
#: Runs every command there is, with a word for each argument that it wants, against an address where nobody is.
EACH_COMMAND = """
import json
import serve_app.client
from typer.main import get_command
from typer.testing import CliRunner
from serve_app.cli import app

serve_app.client._AGAIN_S = 0

def leaves(command, path):
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, each in command.commands.items() for leaf in leaves(each, [*path, name])]

for path, command in leaves(get_command(app), []):
    words = ["1" for each in command.params if each.param_type_name == "argument" and each.required]
    wanted = [word for each in command.params if each.param_type_name == "option" and each.required
              for word in (each.opts[0], "x")]
    done = CliRunner().invoke(app, ["--url", "http://127.0.0.1:1", *path, *words, *wanted])
    raised = None if isinstance(done.exception, SystemExit) or done.exception is None else repr(done.exception)
    print(json.dumps([" ".join(path), getattr(command, "extra", ""), done.exit_code, done.stderr, raised]))
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ClientInstall:
    return install_client(tmp_path_factory.mktemp("client") / "environment")


def test_it_is_small_and_brings_nothing_of_a_service(client: ClientInstall) -> None:
    assert 1 * MEGABYTE < client.added_bytes < 10 * MEGABYTE
    assert client.added == {"annotated-doc", "python-dotenv", "shellingham", "typer"}


def test_it_makes_a_video_of_what_is_piped_in(client: ClientInstall, service: LiveService, folder: Path) -> None:
    (folder / "cat").write_bytes(b"\xff\xd8\xff bytes of a picture")
    at = ["--url", service.url, "--key", API_KEY]

    assert client.run("video-api", "--version").stdout.startswith("video-api ")
    models = client.run("video-api", *at, "--json", "models")
    assert {"ltx2", "wav2lip"} <= {each["model"] for each in json.loads(models.stdout)}
    with (folder / "cat").open() as picture:
        made = client.run("video-api", *at, "submit", "ltx2", "image=-", "-o", "cat.mp4", stdin=picture)

    assert (made.returncode, made.stdout) == (0, "cat.mp4\n"), made.stderr
    assert (folder / "cat.mp4").read_bytes() == VIDEO
    (job,) = service.do(service.services.store.list())
    copy = folder / "copy"
    service.do(service.services.storage.get_file(job.uploads["image"], copy, 1000))
    assert copy.read_bytes() == (folder / "cat").read_bytes()


def test_a_program_is_checked_by_the_client_s_types(client: ClientInstall, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MISTAKEN)
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={client.programs / 'python'}"]
    done = subprocess.run(
        [*mypy, f"--cache-dir={tmp_path / 'cache'}", str(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert re.findall(r"program.py:(\d+): error: .*\[(.*)\]", done.stdout) == [("5", "typeddict-item")], done.stdout


def test_each_command_works_or_names_the_extra_that_it_wants(client: ClientInstall) -> None:
    done = client.run("python", "-c", EACH_COMMAND)
    assert done.returncode == 0, done.stderr
    said = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}

    for name, (extra, code, stderr, raised) in said.items():
        assert raised is None, (name, raised)
        if extra:
            advice = rf"error: `[\w -]*{name}` needs more .*: pip install '\.\[{extra}\]' in a checkout of video-api\n"
            assert (code, bool(re.fullmatch(advice, stderr))) == (2, True), stderr
        elif name == "webhooks change":
            assert (code, "nothing to change" in stderr) == (2, True), stderr
        else:
            assert (code, "cannot reach http://127.0.0.1:1" in stderr) == (3, True), (name, stderr)
    wanted = {name: extra for name, (extra, *_) in said.items() if extra}
    assert (wanted["up"], wanted["demo"], wanted["node join"], wanted["head"]) == ("local", "demo", "gpu", "head")
    assert {"submit", "list", "webhooks create", "keys rotate"} <= said.keys() - wanted.keys()


def test_help_is_there_for_what_is_not_installed(client: ClientInstall) -> None:
    done = client.run("video-api", "head", "--help")
    assert (done.returncode, "Be the head of a cluster" in done.stdout) == (0, True)
