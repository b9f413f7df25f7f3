"""A node's ends, each with its exit status and its hook; its weights; and being process 1."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.briefing import Briefing
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity
from cluster.mesh.invitation import Invitation
from cluster.mesh.registry import Node, invite
from cluster.node import weights
from cluster.node.download import Manifest, WeightFile, WeightsError, WeightsRefused, fetch
from cluster.node.machine import Unfit
from cluster.node.process import briefed
from cluster.node.weights import Checkpoint
from serve_app import __version__
from tests.fakes.http_peer import HttpPeer
from tests.fakes.hub import Hub as ModelHub
from tests.fakes.hub import Repository
from tests.fakes.weights import linked
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

ROOT = Path(__file__).parents[4]
CLI = (sys.executable, "-m", "serve_app.cli")
NOBODY = "127.0.0.1:9"
TOKEN = Invitation(b"f" * 32, b"s" * 32).token()


class Joining:
    """``video-api node join`` with a hook that notes why it ended."""

    def __init__(self, folder: Path, hub: str, token: str, *options: str) -> None:
        self._reason = folder / "reason"
        command = [*CLI, "node", "join", "--hub", hub, "--state", str(folder / "state"), *options]
        hook = f'printf %s "$NODE_END_REASON" > {self._reason}'
        environment = {**os.environ, "MESH_TOKEN": token, "NODE_END_COMMAND": hook}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    async def end(self) -> tuple[int, str]:
        """Exit status, and the reason that the hook was given."""
        _, self.said = await asyncio.to_thread(self.process.communicate, timeout=60)
        return self.process.returncode, self._reason.read_text()


async def test_a_node_gives_up_a_head_that_does_not_come(tmp_path: Path) -> None:
    joining = Joining(tmp_path, NOBODY, TOKEN, "--trust-gpus", "--gpus", "1", "--patience", "1")
    assert await joining.end() == (1, "no head for 1 s")
    assert TOKEN not in joining.said


async def test_a_machine_without_its_gpus_does_not_join(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has GPUs")
    assert await Joining(tmp_path, NOBODY, TOKEN, "--gpus", "2").end() == (1, "0 GPUs are here, 2 promised")


async def test_whoever_rented_a_machine_without_its_gpus_hears_of_it(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has GPUs")
    identity, registry, heard = HubIdentity.derived(bytes(32)), MemoryRegistry(), []

    def hear(node: Node, text: str) -> None:
        heard.append((node.name, json.loads(text)["fault"]))

    async with Hub(identity, registry, host="127.0.0.1", port=0, on_report=hear) as hub:
        _, invitation = await invite(registry, identity, "rental-1", 60)
        await Joining(tmp_path, f"127.0.0.1:{hub.port}", invitation.token(), "--gpus", "2").end()
    assert heard == [("rental-1", "0 GPUs are here, 2 promised")]


async def test_a_full_disk_does_not_join(tmp_path: Path) -> None:
    joining = Joining(tmp_path, NOBODY, TOKEN, "--trust-gpus", "--gpus", "1", "--disk", "9999999")
    status, reason = await joining.end()
    assert status == 1
    assert "GiB left" in reason


@pytest.mark.parametrize("token", ["nonsense", "mesh1-AAAA"])
async def test_a_token_that_is_none_is_refused_here(tmp_path: Path, token: str) -> None:
    status, reason = await Joining(tmp_path, NOBODY, token, "--trust-gpus", "--gpus", "1").end()
    assert (status, reason) == (3, "this is not an invitation to a mesh")


async def test_a_token_that_the_hub_does_not_know_ends_the_node(tmp_path: Path) -> None:
    identity = HubIdentity.derived(bytes(32))
    async with Hub(identity, MemoryRegistry(), host="127.0.0.1", port=0) as hub:
        unknown = Invitation(identity.fingerprint, b"s" * 32).token()
        joining = Joining(tmp_path, f"127.0.0.1:{hub.port}", unknown, "--trust-gpus", "--gpus", "1")
        assert await joining.end() == (3, "the hub refused this node: bad_token")


async def test_sigterm_is_an_end_in_order(tmp_path: Path) -> None:
    joining = Joining(tmp_path, NOBODY, TOKEN, "--trust-gpus", "--gpus", "1")
    assert joining.process.stderr is not None
    await asyncio.to_thread(joining.process.stderr.readline)
    joining.process.send_signal(signal.SIGTERM)
    assert await joining.end() == (0, "stopped")


class Told:
    """An agent that hears this from the hub, whatever it asks."""

    def __init__(self, briefing: Briefing) -> None:
        self._text = briefing.text()

    async def read(self, port: int) -> bytes:
        return self._text


async def test_a_node_refuses_a_head_of_another_version_and_says_what_to_do() -> None:
    agent: Any = Told(Briefing.of_this_head("t", "2.0.0"))
    with pytest.raises(Unfit, match=r"video-api is 1\.0\.0 here and 2\.0\.0 there\. Install what the head runs"):
        await briefed(agent, "1.0.0")


def test_there_is_one_version_number() -> None:
    """Head and nodes, the API's schema and the package have it from one place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "serve_app.__version__"}
    schema = json.loads((ROOT / "docs/openapi.json").read_text())
    assert schema["info"]["version"] == __version__


# ---------------------------------------------------------------- weights


def test_the_environment_names_the_weights(tmp_path: Path) -> None:
    environment = {
        "LTX2_WEIGHTS": "owner/name",
        "WAV2LIP_WEIGHTS": "https://store/manifest.json",
        "WAV2LIP_MODEL_PATH": "/there/already",
        "S3FD_WEIGHTS": "",
        "PATH": "/bin",
    }
    found = weights.wanted(environment, tmp_path)
    assert found == (Checkpoint("LTX2", "owner/name", tmp_path / "ltx2", "LTX2_MODEL_PATH"),)


@pytest.mark.parametrize("count", [1, 2])
async def test_weights_by_manifest(tmp_path: Path, count: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(count):
        (source / f"{number}.pth").write_bytes(os.urandom(5000))
    with HttpPeer() as peer:
        manifest = linked(source, peer.url)
        peer.files |= {f"/{path.name}": path.read_bytes() for path in source.iterdir()}
        peer.files["/manifest.json"] = manifest.model_dump_json().encode()
        folder = tmp_path / "weights" / "wav2lip"
        found = await weights.provide(Checkpoint("WAV2LIP", f"{peer.url}/manifest.json", folder, "WAV2LIP_MODEL_PATH"))
    # A checkpoint of one file is that file, of several their folder.
    assert found == {"WAV2LIP_MODEL_PATH": str(folder / "0.pth" if count == 1 else folder)}
    assert (folder / "0.pth").read_bytes() == (source / "0.pth").read_bytes()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", ["latent_upsampler/config.json", "latent_upsampler/weights", "other/weights", "readme"]),
        ("owner/name/latent_upsampler", ["latent_upsampler/config.json", "latent_upsampler/weights"]),
    ],
)
async def test_weights_of_the_model_hub_or_a_folder_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: list[str]
) -> None:
    names = ("readme", "other/weights", "latent_upsampler/config.json", "latent_upsampler/weights")
    with ModelHub() as hub:
        hub.repositories["owner/name"] = Repository({name: name.encode() for name in names})
        # What HF_ENDPOINT sets in a process of its own.
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        found = await weights.provide(Checkpoint("UP", source, tmp_path / "up", "UP_PATH"))
    assert found == {"UP_PATH": str(tmp_path / "up")}
    files = [path for path in (tmp_path / "up").rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert sorted(str(path.relative_to(tmp_path / "up")) for path in files) == expected


@pytest.mark.parametrize(("status", "refused"), [(401, True), (403, True), (404, True), (410, False)])
async def test_weights_that_nobody_gets_are_told_apart(tmp_path: Path, status: int, refused: bool) -> None:
    class Store(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(status)

    file = WeightFile(path="x", size=1, sha256="0" * 64, url="http://store/x?signature=secret")
    with pytest.raises(WeightsError) as error:
        await fetch(Manifest(files=(file,)), tmp_path, transport=Store())
    assert isinstance(error.value, WeightsRefused) == refused
    assert "secret" not in str(error.value)


async def test_a_manifest_that_nobody_gets_is_told_apart(tmp_path: Path) -> None:
    with HttpPeer() as peer, pytest.raises(WeightsRefused, match="LTX2's manifest: the store answered 404"):
        await weights.provide(Checkpoint("LTX2", f"{peer.url}/missing", tmp_path, "LTX2_MODEL_PATH"))


async def test_a_manifest_that_is_none_is_said_without_its_link(tmp_path: Path) -> None:
    with HttpPeer() as peer:
        peer.files["/odd?signature=secret"] = b"<html>"
        for path in ("odd?signature=secret", "missing?signature=secret"):
            with pytest.raises(WeightsError) as error:
                await weights.provide(Checkpoint("LTX2", f"{peer.url}/{path}", tmp_path, "LTX2_MODEL_PATH"))
            assert "secret" not in str(error.value)


# ---------------------------------------------------------------- process 1

INIT = """
import os, signal, subprocess, sys, time
from cluster.process_one import run_as_init

def work():
    # Leaves an orphan behind, which ends at once and is process 1's to reap.
    subprocess.run(["sh", "-c", "sleep 0.1 & echo"], stdout=subprocess.DEVNULL)
    gives_up = time.monotonic() + 20
    # It ends, and is a zombie for as long as nobody reaps it.
    while (left := {int(p) for p in os.listdir("/proc") if p.isdigit()} - {1, os.getpid()}):
        if time.monotonic() > gives_up:
            break
        time.sleep(0.05)
    print("left", len(left), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("ready", flush=True)
    time.sleep(30)
    return 0

sys.exit(run_as_init(work))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root for process namespaces")
def test_process_1_reaps_strangers_and_passes_signals_on() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", sys.executable, "-c", INIT]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "left 0\n"
        assert process.stdout.readline() == "ready\n"
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        os.kill(int(child), signal.SIGTERM)
        assert process.wait(10) == 7
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- the operator's commands


def operate(database_url: str, *words: str) -> tuple[int, Any]:
    secrets = {"API_KEY": "k", "WEBHOOK_SECRET": "w" * 32, "PUBLIC_URL": "http://x", "DATABASE_URL": database_url}
    done = subprocess.run(
        [*CLI, "--json", *words], cwd=ROOT, env={**os.environ, **secrets}, capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_a_node_s_life_for_its_operator(database_url: str) -> None:
    status, invited = operate(database_url, "node", "token", "--name", "box", "--hub", "proxy.example:12345")
    assert status == 0
    assert invited["command"] == f"video-api node join --hub proxy.example:12345 --token {invited['token']}"
    # Any process with the secret knows the hub's certificate.
    expected = HubIdentity.derived(_settings_secret()).fingerprint
    assert Invitation.parse(invited["token"]).fingerprint == expected
    assert operate(database_url, "node", "token", "--expires", "1m")[1]["slot"] == 3
    assert operate(database_url, "node", "token", "--expires", "0.5")[0] == 2
    listed = operate(database_url, "nodes")[1]
    assert [(row["slot"], row["name"], row["state"]) for row in listed] == [(2, "box", "invited"), (3, "", "invited")]
    assert operate(database_url, "node", "revoke", "2") == (0, {"slot": 2, "revoked": True})
    assert operate(database_url, "nodes")[1][0]["state"] == "revoked"
    status, said = operate(database_url, "node", "revoke", "2")
    assert (status, "slot 2 has no node" in said) == (2, True)


def _settings_secret() -> bytes:
    from serve_app.settings import Settings

    return Settings(webhook_secret="w" * 32).mesh_secret
