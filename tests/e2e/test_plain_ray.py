"""``serve deploy configs/local.yaml`` on a Ray that somebody has started by ``ray start --head`` on a small machine."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from PIL import Image

from cluster.node.workers import end_idle
from serve_app.cli import samples
from serve_app.local.postgres_guard import wait_until_gone
from tests.e2e.cluster import wait_until
from tests.fakes.http_peer import HttpPeer
from tests.ports import free_port
from tests.stack import CONFIG, Stack

ROOT = Path(__file__).parents[2]
CPUS = 2
TOKEN = "0123456789abcdef" * 4
#: Leaves a worker without work until its standard input ends; says the worker's process id.
DRIVER = """
import os, sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote()), flush=True)
sys.stdin.read()
"""
#: Seconds for what takes ten on a quiet machine.
SOON_S = 180


@dataclass(frozen=True)
class PlainRay:
    """A Ray of its own with the application, as a client sees it, and its processes."""

    stack: Stack
    data: Path
    ray: "subprocess.Popen[bytes]"
    #: Of Ray's head, and what reaches it.
    address: str
    environment: Mapping[str, str]

    def kill(self) -> None:
        """Every process of Ray at once, as ``ray stop --force`` does, which would take every other Ray with it."""
        family = [psutil.Process(self.ray.pid), *psutil.Process(self.ray.pid).children(recursive=True)]
        for process in family:
            process.kill()
        self.ray.wait()
        assert wait_until_gone(family, SOON_S)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainRay]:
    with ExitStack() as parts:
        # Short paths, which others may enter: Ray's sockets, and a database server that runs as another user.
        data, folder = (
            Path(parts.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)))
            for prefix in ("video-api-test-", "pr-")
        )
        data.chmod(0o755)
        port, gcs, dashboard, client, agent = (free_port() for _ in range(5))
        environment = {
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "VIDEO_API_DATA_DIR": str(data),
            "PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }
        command = ["start", "--head", f"--num-cpus={CPUS}", "--block", "--disable-usage-stats", f"--temp-dir={folder}"]
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        log = parts.enter_context(open(folder / "log", "wb"))
        ray = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, *ports, f"--dashboard-agent-listen-port={agent}"],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        peer = parts.enter_context(HttpPeer())
        board = parts.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{dashboard}", headers={"authorization": f"Bearer {TOKEN}"})
        )
        http = parts.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        made = PlainRay(Stack(http, peer, board), data, ray, f"127.0.0.1:{gcs}", environment)
        parts.callback(lambda: ray.poll() is None and made.kill())
        wait_until("the dashboard", lambda: board.get("/api/serve/applications/").status_code == 200, SOON_S)

        config = yaml.safe_load(CONFIG.read_text())
        (folder / "local.yaml").write_text(yaml.safe_dump(config))
        serve = [str(Path(sys.executable).with_name("serve")), "deploy", str(folder / "local.yaml")]
        deployed = subprocess.run(
            [*serve, "-a", f"http://127.0.0.1:{dashboard}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stderr
        wait_until("the service", lambda: http.get("/health").status_code == 200, SOON_S)
        http.headers["authorization"] = f"Bearer {json.loads((data / 'secrets.json').read_text())['api_key']}"
        serve_inputs(peer, tmp_path_factory.mktemp("samples"))
        yield made


def serve_inputs(peer: HttpPeer, folder: Path) -> None:
    picture = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
    peer.files["/image.png"] = picture.getvalue()
    for kind in ("video", "audio"):
        path = samples.make(kind, folder)
        assert path is not None
        peer.files[f"/{path.name}"] = path.read_bytes()


def test_both_models_work_while_the_other_s_replica_idles(plain: PlainRay) -> None:
    stack = plain.stack
    urls = {"video_url": f"{stack.peer.url}/sample.mp4", "audio_url": f"{stack.peer.url}/sample.wav"}
    lipsync = {"model": "wav2lip", **urls}
    # The second time nobody starts: each finds the replica that idled during the other's job.
    pids: list[set[int]] = []
    for _ in range(2):
        for body in ({}, lipsync):
            job = stack.wait(stack.submit(**body), timeout_s=SOON_S)
            assert job["status"] == "completed", job
        pids.append({replica["pid"] for model in ("ltx2", "wav2lip") for replica in stack.replicas(model)})
    assert len(pids[0]) == 2
    assert pids[0] == pids[1]


def test_every_replica_there_may_be_fits_one_cpu() -> None:
    """So on no machine does one model wait until another's replica has idled out."""
    application = yaml.safe_load(CONFIG.read_text())["applications"][0]
    most = application["args"]["max_replicas"]
    asked = {each["name"]: each["ray_actor_options"]["num_cpus"] for each in application["deployments"]}
    assert sum(cpus * most.get(name, 1) for name, cpus in asked.items()) <= 1


async def test_of_ray_s_workers_those_without_work_are_ended(plain: PlainRay) -> None:
    """As one that was granted to a head which is no more: it would hold a node's GPU for ever."""
    working = {replica["pid"] for name in ("api", "dispatcher") for replica in plain.stack.replicas(name)}
    pipe = asyncio.subprocess.PIPE
    driver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DRIVER, plain.address), env=plain.environment, stdin=pipe, stdout=pipe
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    idle = psutil.Process(int(await driver.stdout.readline()))
    ending = asyncio.create_task(end_idle(plain.ray.pid, every_s=0.5))
    gone = await asyncio.to_thread(wait_until_gone, [idle], SOON_S)
    ending.cancel()
    with suppress(asyncio.CancelledError):
        await ending
    driver.stdin.close()
    await driver.wait()
    assert gone
    assert working == {replica["pid"] for name in ("api", "dispatcher") for replica in plain.stack.replicas(name)}


def test_the_database_ends_with_a_ray_that_is_killed(plain: PlainRay) -> None:
    """Runs last."""
    pid = int((plain.data / "postgres" / "postmaster.pid").read_text().split()[0])
    server = psutil.Process(pid)
    assert server.is_running()
    plain.kill()
    assert wait_until_gone([server], SOON_S)
    assert plain.ray.returncode == -signal.SIGKILL
