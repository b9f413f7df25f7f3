"""The real bootstrap on a stock image, against a real hub and a real depot, as far as the first word of the node."""

import asyncio
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap import seed
from cluster.bootstrap.files import Files
from cluster.bootstrap.head import Head as LineToHead
from cluster.bootstrap.order import Order
from cluster.head.depot import Assignment, HeadDepot
from cluster.head.wheel import installed as distribution_of
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
        self.hub = Hub(
            IDENTITY,
            self.registry,
            host="127.0.0.1",
            port=0,
            # Those of the slots themselves are where the loopback mesh's programs are, in other workers.
            listen_on=lambda slot: f"127.79.1.{slot.number}",
            depot=self.depot,
            on_report=self._hear,
        )

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

    def __init__(
        self,
        image: Path,
        state: Path,
        port: int,
        invitation: Invitation,
        *,
        source: str = "",
        within: Sequence[str] = (),
        **more: str,
    ) -> None:
        self._command = [*within, str(image), "-c", source or seed.command()[2]]
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
        # As if it had been ended in the middle: what is half made is made anew.
        (state / "environment" / "video-api.json").unlink()
        stray = state / "environment" / "stray"
        stray.touch()
        async with Container(image, state, head.hub.port, invitation) as container:
            status, output = await container.end()
        assert (status, "Processing" in output, stray.exists()) == (0, True, False)
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


async def test_nothing_is_sent_to_somebody_else(tmp_path: Path, image: Path) -> None:
    stranger = HubIdentity.derived(b"somebody else's.................")
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=stranger.server_context())
    port = server.sockets[0].getsockname()[1]
    async with server, Container(image, tmp_path, port, IDENTITY.invitation(), source=impatient()) as container:
        status, output = await container.end()
        assert await received.get() == b""
    assert (status, "another hub answers" in output) == (1, True)


async def test_a_machine_whose_head_is_away_is_given_back(tmp_path: Path, image: Path) -> None:
    with provider() as (url, asked):
        more = {"END_URL": f"{url}/me", "END_KEY_VARIABLE": "MINE", "MINE": "another key"}
        async with Container(image, tmp_path, 9, IDENTITY.invitation(), source=impatient(), **more):
            assert await asyncio.to_thread(asked.get, timeout=100) == ("/me", "Bearer another key")


async def test_an_image_with_another_torch_fetches_nothing_large(tmp_path: Path, wheelhouse: Path) -> None:
    image = stock_image(tmp_path / "image", ["video-api", "structlog"], torch="2.0.1+cu118")
    async with running_head(tmp_path, wheelhouse) as head:
        async with Container(image, tmp_path / "state", head.hub.port, await head.invite()) as container:
            status, _ = await container.end()
        assert status == 1
        assert "the image has torch 2.0.1, the head wants" in head.said[-1]["fault"]
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"install.pyz", "config.json"}


async def test_an_image_of_ours_joins_at_once(tmp_path: Path, wheelhouse: Path) -> None:
    image = image_of_ours(tmp_path)
    async with running_head(tmp_path, wheelhouse) as head:
        async with Container(image, tmp_path / "state", head.hub.port, await head.invite()) as container:
            status, output = await container.end()
        assert (status, "Usage: video-api node join" in output) == (0, True)
        assert set(head.said[-1]["phases"]) == {"fetching"}
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"install.pyz", "config.json"}


async def test_opencv_without_the_system_s_libraries_is_replaced(tmp_path: Path, wheelhouse: Path) -> None:
    version = metadata.version("opencv-python")
    image = stock_image(tmp_path / "image", ["video-api", "opencv-python"])
    (site,) = (tmp_path / "image").glob("lib/python*/site-packages")
    broken = 'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")\n'
    write_distribution(site, "opencv-python", version, "cv2", broken)
    whole = tmp_path / "whole"
    write_distribution(whole, "opencv-python-headless", version, "cv2", "")
    wheels = tmp_path / "wheels"
    (headless,) = metadata.distributions(path=[str(whole)])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(whole)
        patch.delitem(sys.modules, "cv2", raising=False)
        wheel_of(headless, ["cv2"], wheels)
    async with running_head(tmp_path, wheels) as head:
        async with Container(image, tmp_path / "state", head.hub.port, await head.invite()) as container:
            status, _ = await container.end()
        assert (status, head.said[-1]["fault"]) == (0, "")
    assert installed(tmp_path / "state" / "environment") == {"opencv_python_headless", "video_api"}


async def test_a_line_that_is_cut_is_gone_on_with(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "large-1.0-py3-none-any.whl").write_bytes(content)
    carried = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """To the hub and back, 600,000 bytes of it."""
        nonlocal carried
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", head.hub.port)

        async def there() -> None:
            while data := await reader.read(65536):
                hub_writer.write(data)

        going, left = asyncio.create_task(there()), 600_000
        while left > 0 and (data := await hub_reader.read(min(left, 65536))):
            left -= len(data)
            carried += len(data)
            writer.write(data)
        for each in (writer, hub_writer):
            each.close()
        going.cancel()

    async with running_head(tmp_path, wheels) as head:
        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        invitation = await head.invite()
        progress: list[tuple[int, int]] = []
        line = LineToHead(f"127.0.0.1:{port}", invitation.token())
        files = Files(line, tmp_path / "files", lambda *now: progress.append(now), pause_s=0.01)
        text = await head.depot.open(await head.registry.find(digest(invitation.secret)), "config.json")
        wanted = [file for file in Order.parse(text).files if file.name.startswith("large")]
        async with server:
            await asyncio.to_thread(files.fetch, wanted)
            # What is there is not fetched again, and what was spoilt is.
            before = carried
            await asyncio.to_thread(files.fetch, wanted)
            assert carried == before
            (tmp_path / "files" / wanted[0].name).write_bytes(bytes(len(content)))
            await asyncio.to_thread(files.fetch, wanted)
    assert (tmp_path / "files" / wanted[0].name).read_bytes() == content
    assert progress[-1] == (len(content), len(content))
    # Each byte once, and a little around it, for each of the two times.
    assert before < 1.1 * len(content)
    assert max(done for done, _ in progress) == len(content)


STAGE = """
import os, signal, subprocess, sys, time
# Leaves an orphan behind, which ends at once and is process 1's to reap.
subprocess.run(["sh", "-c", "sleep 0.1 & echo"], stdout=subprocess.DEVNULL)
time.sleep(0.5)
states = [open(f"/proc/{p}/stat").read().split()[2] for p in os.listdir("/proc") if p.isdigit()]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("zombies", states.count("Z"), "key", os.environ.get("CONTAINER_API_KEY"), flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root for process namespaces")
async def test_process_1_reaps_strangers_passes_signals_on_and_keeps_its_key(tmp_path: Path, image: Path) -> None:
    # The head is away: what was kept runs.
    (tmp_path / "install.pyz").write_text(STAGE)
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")
    async with Container(image, tmp_path, 9, IDENTITY.invitation(), within=unshare) as container:
        while not (line := await container.process.stdout.readline()).startswith(b"zombies"):
            assert line
        assert line == b"zombies 0 key None\n"
        os.kill(only_child(container.process.pid), signal.SIGTERM)
        assert (await container.end())[0] == 7


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def image_of_ours(folder: Path) -> Path:
    """Its Python: one that has this version installed."""
    image = stock_image(folder / "image", ["video-api"])
    wheel = wheel_of(distribution_of("video-api"), ["cluster", "deployments", "serve_app"], folder)
    command = [image, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", wheel]
    subprocess.run(command, check=True)
    return image


def impatient() -> str:
    """The seed, for a test that doesn't wait ten minutes for a head."""
    source = seed.command()[2]
    assert source.count("\nPATIENCE = 600\n") == 1
    return source.replace("\nPATIENCE = 600\n", "\nPATIENCE = 0\n")


def write_distribution(site: Path, name: str, version: str, package: str, source: str) -> None:
    """One package, as if it were installed there."""
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / package).mkdir()
    (site / package / "__init__.py").write_text(source)
