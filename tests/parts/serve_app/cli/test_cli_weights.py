"""``video-api weights``: from a hub, by way of a bucket, to a node that has neither's keys."""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from cluster.node import weights
from serve_app.cli import app
from tests.fakes.http_source import HttpSource, reply
from tests.fakes.hub import SIGNATURE, Cut, Hub, Pause, Repository
from tests.fakes.s3 import make_bucket, s3_server
from tests.fakes.weights import contents
from tests.parts.serve_app.cli.invocation import PROGRAM, parsed

ROOT = Path(__file__).parents[4]
TOKEN, ACCESS_KEY, SECRET_KEY = "hf_of_the_test", "access-key-of-the-test", "secret-key-of-the-test"
NAME = "someone/model"
FILES = {"model_index.json": b"{}", "unet/weights": os.urandom(30_000), "vae/weights": os.urandom(10_000)}
LIMIT_S = 60


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name = make_bucket(endpoint)
    values = {
        "R2_ENDPOINT": endpoint,
        "R2_ACCESS_KEY": ACCESS_KEY,
        "R2_SECRET_KEY": SECRET_KEY,
        "R2_BUCKET": name,
        "R2_REGION": "auto",
    }
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    return name


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.tokens.add(TOKEN)
        large = frozenset({"unet/weights", "vae/weights"})
        hub.repositories[NAME] = Repository(dict(FILES), large, private=True, readers=frozenset({TOKEN}))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["weights", *words])


def objects(endpoint: str, bucket: str) -> dict[str, bytes]:
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s")
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in listed}


@pytest.mark.usefixtures("bucket", "hub")
async def test_a_node_gets_what_the_hub_has(tmp_path: Path) -> None:
    assert run("mirror", NAME, "--name", "ltx2").exit_code == 0
    said = run("link", "ltx2")
    url, line = said.stdout.splitlines()
    # As a shell takes it.
    ((variable, value),) = [word.split("=", 1) for word in shlex.split(line)]
    assert (variable, value) == ("LTX2_WEIGHTS", url)
    (checkpoint,) = weights.wanted({variable: value}, tmp_path / "node")
    with capture_logs() as logs:
        found = await weights.provide(checkpoint)
    assert found == {"LTX2_MODEL_PATH": str(tmp_path / "node" / "ltx2")}
    assert contents(tmp_path / "node" / "ltx2") == FILES
    assert "X-Amz" not in str(logs)


@pytest.mark.usefixtures("bucket")
async def test_a_node_gets_a_checkpoint_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "wav2lip_gan.pth").write_bytes(b"weights")
    assert run("mirror", str(tmp_path / "wav2lip_gan.pth")).exit_code == 0
    linked = parsed(run("link", "wav2lip_gan.pth", "--model", "wav2lip", "--json"))
    (checkpoint,) = weights.wanted({linked["variable"]: linked["url"]}, tmp_path / "node")
    found = await weights.provide(checkpoint)
    path = tmp_path / "node" / "wav2lip" / "wav2lip_gan.pth"
    assert found == {"WAV2LIP_MODEL_PATH": str(path)}
    assert contents(path.parent) == {path.name: b"weights"}


@pytest.mark.usefixtures("bucket")
def test_what_is_mirrored_is_listed(hub: Hub) -> None:
    commit = hub.repositories[NAME].commit
    mirrored = parsed(run("mirror", NAME, "--name", "ltx2", "--exclude", "vae/*", "--json"))
    bytes_of_it = 2 + 30_000
    row = {"name": "ltx2", "source": NAME, "revision": commit, "files": 2, "bytes": bytes_of_it}
    assert mirrored == {**row, "new_files": 2, "new_bytes": bytes_of_it}
    again = run("mirror", f"{NAME}@{commit}", "--name", "ltx2", "--exclude", "vae/*")
    assert again.stdout == f"ltx2: {NAME}@{commit[:12]}, 2 files, 30002 bytes; copied now: 0 files, 0 bytes\n"
    (listed,) = parsed(run("list", "--json"))
    assert listed.pop("mirrored_at").endswith("+00:00")
    assert listed.pop("stored_bytes") > bytes_of_it
    assert listed == row
    heading, line = run("list").stdout.splitlines()
    assert heading.split()[:4] == ["NAME", "SOURCE", "FILES", "SIZE"]
    assert line.split()[:5] == ["ltx2", f"{NAME}@{commit[:12]}", "2", "30002", "bytes"]


def test_what_is_not_finished_is_listed_as_that(endpoint: str, bucket: str, hub: Hub) -> None:
    hub.repositories[NAME].damaged["vae/weights"] = FILES["vae/weights"][::-1]
    failed = run("mirror", NAME, "--name", "ltx2")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "error: vae/weights is not what someone/model says it is" in failed.stderr
    assert "weights/ltx2/manifest.json" not in objects(endpoint, bucket)
    assert "not finished: mirror it again" in run("list").stdout
    assert "error: no weights ltx2 are mirrored, or not all of them" in run("link", "ltx2").stderr


@pytest.mark.usefixtures("hub")
def test_a_link_expires_when_it_says(endpoint: str, bucket: str) -> None:
    run("mirror", NAME, "--name", "ltx2")
    for words, hours in ((("--expires", "7d"), 168), (("--expires", "168"), 168)):
        linked = parsed(run("link", "ltx2", *words, "--json"))
        manifest = httpx.get(linked["url"], trust_env=False).json()
        for url in (linked["url"], *(file["url"] for file in manifest["files"])):
            assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == [str(hours * 3600)]
    (key,) = (key for key in objects(endpoint, bucket) if key in linked["url"])
    assert key not in run("link", "ltx2").stdout
    for words in (("--expires", "169"), ("--expires", "8d"), ("--expires", "59m")):
        assert run("link", "ltx2", *words).exit_code == 2


def test_no_key_gets_anywhere(endpoint: str, bucket: str, hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, so that whatever a library writes is seen; it has something to say of the cut."""
    hub.repositories[NAME].faults["unet/weights"] = [Cut(1000)]
    command = [sys.executable, "-m", "serve_app.cli", "weights"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = {}
    for words in (("mirror", NAME, "--name", "ltx2"), ("list",), ("link", "ltx2")):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        said[words[0]] = done.stdout + done.stderr
    stored = objects(endpoint, bucket)
    everything = "".join(said.values()) + "".join(stored) + "".join(data.decode("latin-1") for data in stored.values())
    for secret in (TOKEN, SECRET_KEY, SIGNATURE):
        assert secret not in everything
    # Whose key signed a link is in the link, which is how S3 does it.
    unsigned = [data for key, data in stored.items() if not key.startswith("weights-links/")]
    assert ACCESS_KEY not in said["mirror"] + said["list"] + "".join(data.decode("latin-1") for data in unsigned)
    # Links are for whoever asked for them, and for nodes.
    assert "X-Amz-Signature" not in said["mirror"] + said["list"]
    assert said["link"].count("X-Amz-Signature") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("bucket")
def test_ctrl_c_ends_it_at_once_and_says_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[NAME].faults["unet/weights"] = [Pause(1000)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", PROGRAM, "weights", "mirror", NAME]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        try:
            assert hub.paused.wait(LIMIT_S)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.endswith("interrupted; the same command goes on from here\n")
    assert not list(temporary.iterdir())


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_open_to_all_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    assert "R2_PUBLIC_URL" not in run("mirror", "weights").stderr
    monkeypatch.setenv("R2_PUBLIC_URL", "https://media.example.com")
    said = run("mirror", "weights").stderr
    assert "R2_PUBLIC_URL: this bucket is open to all, so who guesses weights/weights/manifest.json has them" in said


@pytest.mark.usefixtures("bucket")
def test_a_store_of_pieces_that_fails_is_said(hub: Hub, tmp_path: Path) -> None:
    """Its client raises errors of its own, and keeps logs: in a process and a folder of its own."""
    hub.repositories[NAME].in_pieces = True
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "serve_app.cli", "weights", "mirror", NAME]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.endswith("error: a file of someone/model did not come whole: run the command again\n")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("words", [("mirror", NAME), ("list",), ("link", "ltx2")])
def test_without_a_bucket_it_says_what_to_set(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R2_ENDPOINT", raising=False)
    done = run(*words)
    assert done.exit_code == 2
    assert "give R2_ENDPOINT, R2_ACCESS_KEY, R2_SECRET_KEY and R2_BUCKET" in done.stderr
    # A command that needs none of the service's secrets invents none.
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("bucket", "hub")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mirror", "./none"), "./none: no such file or folder, and no OWNER/NAME[@REVISION] of the model hub"),
        (("mirror", "someone/none"), "the model hub has no repository someone/none that HF_TOKEN may see"),
        (("mirror", NAME, "--include", "*.bin"), "of 3 files none is left to mirror"),
        (("mirror", NAME, "--name", "a/b"), "'a/b' is no name for weights"),
        (("link", "none", "--model", "ltx2"), "no weights none are mirrored"),
        (("link", "none"), "none is no model, so say with --model whose weights they are: ltx2, wav2lip"),
    ],
)
def test_what_cannot_be_is_said(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"error: {said}" in done.stderr


@pytest.mark.usefixtures("bucket")
async def test_a_bucket_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_BUCKET", "media")
    async with HttpSource({"/media": reply(403)}) as source:
        monkeypatch.setenv("R2_ENDPOINT", source.url(""))
        done = await asyncio.to_thread(run, "list")
    assert done.exit_code == 2
    assert "for weights/. Look at R2_ENDPOINT, R2_BUCKET, R2_ACCESS_KEY and R2_SECRET_KEY" in done.stderr
