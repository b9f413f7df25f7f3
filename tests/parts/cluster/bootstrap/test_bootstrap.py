"""The real bootstrap on a stock image, against a real hub and a real depot, as far as the first word of the node."""

import asyncio
import json
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import seed
from cluster.head.depot import Assignment, HeadDepot
from cluster.head.wheel import wheel_of
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.invitation import Invitation
from cluster.mesh.registry import Node, invite
from tests.fakes.stock_image import stock_image
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

IDENTITY = HubIdentity.derived(b"the bootstrap of the tests......")
LINK = "https://store/manifest.json?signature=secret"
KEY = "the machine's own key"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an image that lacks us and one other package."""
    return stock_image(tmp_path_factory.mktemp("image"), ["video-api", "structlog"])


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    wheel_of(metadata.distribution("structlog"), ["structlog"], folder)
    return folder


class Head:
    """A hub with a depot, and what it heard."""

    def __init__(self, folder: Path, wheelhouse: Path) -> None:
        self.registry = MemoryRegistry()
        self.said: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.depot = HeadDepot(describe=self._describe, folder=folder / "depot", wheelhouse=wheelhouse)
        self.hub = Hub(IDENTITY, self.registry, host="127.0.0.1", port=0, depot=self.depot, on_report=self._hear)

    async def _describe(self, node: Node) -> Assignment:
        # The command ends with its explanation: that the node joins is tested where there is a cluster.
        return Assignment(environment={"LTX2_WEIGHTS": LINK}, arguments=("--name", node.name, "--help"))

    def _hear(self, node: Node, text: str) -> None:
        assert node.name == "rental-1"
        self.texts.append(text)
        self.said.append(json.loads(text))

    async def invite(self) -> Invitation:
        _, invitation = await invite(self.registry, IDENTITY, "rental-1", 600)
        return invitation


@asynccontextmanager
async def running_head(folder: Path, wheelhouse: Path) -> AsyncIterator[Head]:
    head = Head(folder, wheelhouse)
    async with head.hub:
        yield head


class Container:
    """The seed as the container's command, and what it prints."""

    def __init__(self, image: Path, state: Path, port: int, invitation: Invitation, *, source: str = "", **more: str):
        self._command = [str(image), "-c", source or seed.command()[2]]
        self._environment = {
            "PATH": os.environ["PATH"],
            # Nothing that this machine offers besides.
            "PIP_CONFIG_FILE": os.devnull,
            "HUB": f"127.0.0.1:{port}",
            "MESH_TOKEN": invitation.token(),
            "STATE": str(state),
            "CONTAINER_API_KEY": KEY,
            **more,
        }

    async def __aenter__(self) -> "Container":
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        await self.process.wait()

    async def end(self) -> tuple[int, str]:
        """Exit status and output."""
        output, _ = await self.process.communicate()
        print(output.decode())
        return self.process.returncode, output.decode()


@contextmanager
def provider(*answers: int) -> Iterator[tuple[str, "queue.Queue[tuple[str, str | None]]"]]:
    """Takes machines back; answers so, then 200. Its address, and path and authorization of what it is asked."""
    asked: queue.Queue[tuple[str, str | None]] = queue.Queue()
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self.send_response(left.pop(0) if left else 200)
            self.send_header("content-length", "0")
            self.end_headers()
            asked.put((self.path, self.headers["authorization"]))

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


async def test_a_stock_image_gets_what_it_lacks_and_at_its_end_the_machine_is_given_back(
    tmp_path: Path, image: Path, wheelhouse: Path
) -> None:
    state = tmp_path / "state"
    async with running_head(tmp_path, wheelhouse) as head:
        invitation = await head.invite()
        with provider(500, 500) as (url, asked):
            end = {"END_URL": url + "/instances/$CONTAINER_ID/", "CONTAINER_ID": "77"}
            async with Container(image, state, head.hub.port, invitation, **end) as container:
                for _ in range(3):
                    given_back = await asyncio.to_thread(asked.get, timeout=100)
                    assert given_back == ("/instances/77/", f"Bearer {KEY}")
                # A container whose process 1 ends would be started again.
                assert container.process.returncode is None
                container.process.terminate()
                status, output = await container.end()
                assert status == 143
                assert "Usage: video-api node join" in output
                assert asked.empty()
        assert installed(state / "environment") == {"structlog", "video_api"}
        assert (state / "config.json").stat().st_mode & 0o077 == 0
        # What it said on its way: nothing went wrong, and nothing in it is a secret.
        assert {report["state"] for report in head.said} == {"installing"}
        assert {report["fault"] for report in head.said} == {""}
        phases = head.said[-1]["phases"]
        assert set(phases) == {"fetching", "installing"}
        assert phases["installing"]["s"] > 0
        assert not any(secret in text for text in head.texts for secret in (invitation.token(), "signature", KEY))
        print("phases", phases)


async def test_a_container_that_is_restarted_fetches_again_until_its_node_has_joined(
    tmp_path: Path, image: Path, wheelhouse: Path
) -> None:
    state = tmp_path / "state"
    async with running_head(tmp_path, wheelhouse) as head:
        invitation = await head.invite()
        async with Container(image, state, head.hub.port, invitation) as container:
            assert (await container.end())[0] == 0
        made = (state / "environment" / "pyvenv.cfg").stat().st_mtime_ns
        async with Container(image, state, head.hub.port, invitation) as container:
            status, output = await container.end()
        assert (status, "Processing" in output, "no config.json" in output) == (0, False, False)
        # Joined: now the token opens nothing more.
        await head.registry.redeem(digest(invitation.secret), bytes(32), "")
        await head.hub.sync()
        async with Container(image, state, head.hub.port, invitation) as container:
            status, output = await container.end()
        assert (status, "no config.json: the head refuses: bad_token" in output) == (0, True)
        assert "Usage: video-api node join" in output
        assert (state / "environment" / "pyvenv.cfg").stat().st_mtime_ns == made
        # And with the head away.
    async with Container(image, state, head.hub.port, invitation) as container:
        assert (await container.end())[0] == 0


def installed(environment: Path) -> set[str]:
    """Distributions that are in it and not in the image below."""
    return {path.name.partition("-")[0] for path in environment.glob("lib/python*/site-packages/*.dist-info")}
