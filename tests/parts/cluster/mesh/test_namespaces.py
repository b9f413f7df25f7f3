"""The mesh as processes on machines that have no other way to each other."""

import hashlib
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.mesh.plan import slot
from cluster.mesh.sockets import DEAD_S, PathMonitor
from tests.fakes import netns
from tests.fakes.netns import PUBLIC_PORT, Network, Process

_MISSING = netns.missing()
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))

MESH = [sys.executable, "-m", "tests.parts.cluster.mesh.process"]
SLOTS = {"head": 1, "gpu1": 2, "gpu2": 3}
WAYS = [("head", "gpu1"), ("gpu1", "head"), ("head", "gpu2"), ("gpu2", "head")]


@dataclass
class Cluster:
    network: Network
    state: Path
    hub: Process
    agents: dict[str, Process]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hub, two agents, and an echo server on every machine's first worker port."""
    state = tmp_path_factory.mktemp("mesh")
    with netns.network() as network:
        hub = network.start("head", [*MESH, "hub", "--port", str(PUBLIC_PORT), "--invite", "2"])
        hub.expect("ready")
        agents = {}
        for machine in ("gpu1", "gpu2"):
            token = hub.expect("invited")["token"]
            agents[machine] = start_agent(network, machine, state, token)
        for agent in agents.values():
            agent.expect("ready")
        with_all = Cluster(network, state, hub, agents)
        for machine in SLOTS:
            serve_echo(network, machine)
        for way in WAYS:
            assert call(with_all, *way, b"warm", patient=True) == b"warm"
        yield with_all


def start_agent(network: Network, machine: str, state: Path, token: str = "") -> Process:
    hub = f"{network.hub_address(machine)}:{PUBLIC_PORT}"
    command = [*MESH, "agent", "--hub", hub, "--state", str(state / machine)]
    return network.start(machine, command, {"MESH_TOKEN": token})


def place(machine: str) -> tuple[str, int]:
    own = slot(SLOTS[machine])
    return own.address, own.workers[0]


def serve_echo(network: Network, machine: str) -> None:
    listener = network.socket(machine)
    listener.settimeout(None)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place(machine))
    listener.listen(64)

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 18):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def call(cluster: Cluster, at: str, to: str, data: bytes, patient: bool = False) -> bytes:
    """Send and read everything back; ``patient``: try again when refused or reset, as every gRPC client does."""
    while True:
        try:
            with cluster.network.socket(at) as client:
                client.connect(place(to))
                sender = threading.Thread(target=_send, args=(client, data))
                sender.start()
                got = bytearray()
                while piece := client.recv(1 << 18):
                    got += piece
                sender.join()
                return bytes(got)
        except ConnectionError:
            if not patient:
                raise


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_no_other_way(cluster: Cluster) -> None:
    """Neither by the cable's addresses nor, from head to node, by any."""
    for at, to in [*WAYS, ("gpu1", "gpu2"), ("gpu2", "gpu1")]:
        for port in (PUBLIC_PORT, place(to)[1]):
            with cluster.network.socket(at) as client:
                client.settimeout(0.5)
                with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
                    client.connect((cluster.network.address(to), port))


def test_nodes_do_not_reach_each_other_through_the_mesh(cluster: Cluster) -> None:
    for at, to in (("gpu1", "gpu2"), ("gpu2", "gpu1")):
        with cluster.network.socket(at) as client, pytest.raises(ConnectionRefusedError):
            client.connect(place(to))


@pytest.mark.parametrize(("at", "to"), WAYS)
def test_through_the_mesh(cluster: Cluster, at: str, to: str) -> None:
    data = random.randbytes(20_000_000)
    assert hashlib.sha256(call(cluster, at, to, data)).digest() == hashlib.sha256(data).digest()


def test_cut_by_reset(cluster: Cluster) -> None:
    held = [cluster.network.socket(at) for at, _ in WAYS]
    for client, (_, to) in zip(held, WAYS, strict=True):
        client.connect(place(to))
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    cluster.network.cut_by_reset()
    for agent in cluster.agents.values():
        agent.expect("down")
    for client in held:
        # No flow is left hanging: each ends, and not as if it were complete.
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
    cluster.network.start_forwarder()
    for agent in cluster.agents.values():
        agent.expect("up")
    for way in WAYS:
        assert call(cluster, *way, b"again", patient=True) == b"again"


def test_cut_by_black_hole(cluster: Cluster) -> None:
    """No packet gets through; on the head's side the proxy's TCP stays up, so only silence tells."""
    before = cluster.hub.stats()
    with cluster.network.socket("head") as client, cluster.network.socket("gpu1") as other:
        for one, to in ((client, "gpu1"), (other, "head")):
            one.connect(place(to))
            one.sendall(b"x")
            assert one.recv(1) == b"x"
        cluster.network.black_hole("gpu1", True)
        cluster.agents["gpu1"].expect("down")
        for one in (client, other):
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        # Those that can still reach the head don't notice.
        assert call(cluster, "gpu2", "head", b"not me") == b"not me"
        cluster.network.black_hole("gpu1", False)
        cluster.agents["gpu1"].expect("up")
    for way in WAYS:
        assert call(cluster, *way, b"again", patient=True) == b"again"
    after = cluster.hub.stats()
    assert after["dead"] >= before["dead"] + 2


class Sending:
    """What :class:`PathMonitor` asks of a transport."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self._sock


def test_a_path_that_died_is_told_from_a_reader_that_stalls(cluster: Cluster) -> None:
    """By the kernel's counters alone, as where the node's control connection is well and one flow is not."""
    network = cluster.network
    with ExitStack() as sockets:
        listener = sockets.enter_context(network.socket("internet"))
        listener.bind(("0.0.0.0", 7000))
        listener.listen(2)
        monitors, senders = {}, {}
        for machine in ("gpu1", "gpu2"):
            senders[machine] = sender = sockets.enter_context(network.socket(machine))
            sender.connect((network.hub_address(machine), 7000))
            sockets.enter_context(listener.accept()[0])
            monitors[machine] = PathMonitor()
        sockets.callback(network.black_hole, "gpu1", False)
        network.black_hole("gpu1", True)
        for sender in senders.values():
            sender.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sender.send(bytes(1 << 16))
        begun = now = time.monotonic()
        dead: set[str] = set()
        while not dead:
            assert now - begun < 2 * DEAD_S
            time.sleep(0.5)
            now = time.monotonic()
            dead = {machine for machine, sender in senders.items() if monitors[machine].is_dead(Sending(sender), now)}
        assert dead == {"gpu1"}
        assert now - begun >= DEAD_S
        # The agent takes a few seconds longer to give up. Mended before that, its connection would just go on.
        cluster.agents["gpu1"].expect("down")
    cluster.agents["gpu1"].expect("up")


def test_agent_killed_and_started_again(cluster: Cluster) -> None:
    """With the key it has on disk: its token is long used up."""
    old = cluster.agents["gpu1"]
    old.stop(9)
    cluster.agents["gpu1"] = start_agent(cluster.network, "gpu1", cluster.state)
    assert cluster.agents["gpu1"].expect("ready")["slot"] == 2
    for way in WAYS:
        assert call(cluster, *way, b"again", patient=True) == b"again"
