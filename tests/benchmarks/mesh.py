"""The mesh against a bare cable and against OpenSSH's forwarding: same machines, same run, taking turns.

``python tests/benchmarks/mesh.py`` as root; about four minutes; traffic stays in namespaces of its own. OpenSSH is left
out if it isn't installed. Prints a Markdown table. On shared cores compare the columns, not the absolute numbers.
"""

import asyncio
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.mesh.agent import join
from cluster.mesh.control import ControlConnection
from cluster.mesh.dialer import Dialer, HubAddress
from cluster.mesh.plan import slot
from cluster.mesh.wire import Frame, Hello, Peers, Ping
from tests.fakes import netns
from tests.fakes.netns import PUBLIC_PORT, Network, Process

ROUNDS = 3
BULK_S = 3.0
ECHOES = 3000
#: Between two small calls.
PAUSE_S = 0.003
CONNECTS = 40
CROWDS = (25, 50, 100)
#: Where ssh listens: its own port, and what it forwards on each machine.
SSH_PORT, SSH_FORWARD = 2200, 40001
#: The mesh's ends as programs.
MESH = [sys.executable, "-m", "tests.parts.cluster.mesh.process"]
SLOTS = {"head": 1, "gpu1": 2}

Place = tuple[str, int]


@dataclass(frozen=True)
class Route:
    """A way from one machine to a server on the other."""

    kind: str
    client: str
    place: Place


# The load, as processes of their own: a thread would share its interpreter's lock with whatever it measures.


def serve(address: str, port: int) -> None:
    """A connection's first byte says what it wants: everything echoed, or swallowed and counted."""
    listener = socket.create_server((address, port), backlog=128)
    print('{"event": "ready"}', flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer, total = bytearray(1 << 18), 0
        echoing = connection.recv(1) == b"e"
        while count := connection.recv_into(buffer):
            total += count
            if echoing:
                connection.sendall(memoryview(buffer)[:count])
        if not echoing:
            connection.sendall(str(total).encode())
        os._exit(0)


def bulk(address: str, port: int, seconds: float) -> None:
    """Send as fast as it goes; Gbit/s, counted when the last byte has arrived."""
    data = os.urandom(1 << 18)
    with socket.create_connection((address, port)) as connection:
        connection.sendall(b"s")
        print('{"event": "started"}', flush=True)
        start, sent = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            connection.sendall(data)
            sent += len(data)
        connection.shutdown(socket.SHUT_WR)
        assert int(connection.recv(64)) == sent
        took = time.perf_counter() - start
    print(json.dumps({"event": "done", "gbit_s": sent * 8 / took / 1e9}), flush=True)


def echoes(address: str, port: int, count: int) -> None:
    """One byte there and back, over and over; microseconds."""
    took = []
    with socket.create_connection((address, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"e")
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            took.append((time.perf_counter() - start) * 1e6)
    # The first ones find everything cold.
    centiles = statistics.quantiles(took[count // 10 :], n=100)
    print(json.dumps({"event": "done", "p50_us": centiles[49], "p99_us": centiles[98]}), flush=True)


def calls(address: str, port: int, seconds: float) -> None:
    """A byte there and back, a pause, and so on; microseconds.

    For so long and not so many: calls without a pause would nearly all fall into moments when nothing else goes on.
    """
    took = []
    with socket.create_connection((address, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"e")
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            connection.sendall(b"x")
            connection.recv(1)
            took.append((time.perf_counter() - start) * 1e6)
            time.sleep(PAUSE_S)
    centiles = statistics.quantiles(took[10:], n=100)
    print(json.dumps({"event": "done", "p50_us": centiles[49], "p99_us": centiles[98]}), flush=True)


def connects(address: str, port: int, count: int) -> None:
    """A new connection until its first byte is back; milliseconds."""
    took = []
    for _ in range(count):
        start = time.perf_counter()
        with socket.create_connection((address, port)) as connection:
            connection.sendall(b"ex")
            connection.recv(1)
        took.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"event": "done", "p50_ms": statistics.median(took)}), flush=True)


def start(network: Network, machine: str, *arguments: object) -> Process:
    return network.start(machine, [sys.executable, __file__, *map(str, arguments)])


def measure(network: Network, path: Route) -> dict[str, float]:
    """Everything about one path."""

    def done(*arguments: object) -> dict[str, Any]:
        process = start(network, path.client, arguments[0], *path.place, *arguments[1:])
        result = process.expect("done")
        process.popen.wait()
        return result

    hot, idle = done("echoes", ECHOES), done("calls", BULK_S)
    busy = start(network, path.client, "bulk", *path.place, BULK_S + 1)
    busy.expect("started")
    loaded = done("calls", BULK_S)
    throughput = busy.expect("done")["gbit_s"]
    busy.popen.wait()
    return {
        "throughput, Gbit/s": throughput,
        "1-byte echo p50, us": hot["p50_us"],
        "1-byte echo p99, us": hot["p99_us"],
        "small call p99, us": idle["p99_us"],
        "p50 during bulk, us": loaded["p50_us"],
        "p99 during bulk, us": loaded["p99_us"],
        "p99 during bulk / idle": loaded["p99_us"] / idle["p99_us"],
        "new connection p50, ms": done("connects", CONNECTS)["p50_ms"],
    }


def start_mesh(network: Network, state: Path) -> None:
    hub = network.start("head", [*MESH, "hub", "--port", str(PUBLIC_PORT), "--invite", "1"])
    there = ["agent", "--hub", f"{network.hub_address('gpu1')}:{PUBLIC_PORT}", "--state", str(state / "gpu1")]
    network.start("gpu1", [*MESH, *there], {"MESH_TOKEN": hub.expect("invited")["token"]}).expect("ready")


def start_ssh(network: Network, state: Path, places: dict[str, Place]) -> None:
    """gpu1 → head by ``-L``, head → gpu1 by ``-R``."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", state / key], check=True)
    (state / "user.pub").rename(state / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "ListenAddress": f"{network.address('head')}:{SSH_PORT}",
        "HostKey": state / "host",
        "AuthorizedKeysFile": state / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
        "PidFile": "none",
    }
    flags = [f"-o{name}={value}" for name, value in options.items()]
    network.start("head", [shutil.which("sshd") or "sshd", "-D", "-f", "/dev/null", *flags])
    head, gpu1 = (":".join(map(str, places[target])) for target in ("head", "gpu1"))
    wanted = [f"-L{SSH_FORWARD}:{head}", f"-R127.0.0.1:{SSH_FORWARD}:{gpu1}"]
    client = ["ssh", "-N", "-q", f"-p{SSH_PORT}", "-i", str(state / "user"), "-oExitOnForwardFailure=yes"]
    client += ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oConnectionAttempts=20"]
    network.start("gpu1", [*client, *wanted, f"root@{network.address('head')}"])
    for machine in SLOTS:
        until_echo(network, machine, ("127.0.0.1", SSH_FORWARD))


def until_echo(network: Network, machine: str, place: Place) -> None:
    give_up = time.monotonic() + 30
    while True:
        with network.socket(machine) as client:
            try:
                client.connect(place)
                client.sendall(b"ex")
                if client.recv(1) == b"x":
                    return
            except OSError:
                assert time.monotonic() < give_up, f"nothing behind {place}"
        time.sleep(0.1)


def compare() -> None:
    """Cable, mesh and ssh, in turns."""
    with netns.network(routed=True) as network, tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        places = {machine: (slot(number).address, slot(number).workers[0]) for machine, number in SLOTS.items()}
        for machine in SLOTS:
            start(network, machine, "serve", *places[machine]).expect("ready")
            bare = (network.address(machine), 30000)
            start(network, machine, "serve", *bare).expect("ready")
        start_mesh(network, state)
        ways = (("gpu1", "head"), ("head", "gpu1"))
        paths = [Route("cable", client, (network.address(server), 30000)) for client, server in ways]
        paths += [Route("mesh", client, places[server]) for client, server in ways]
        for client, server in ways:
            until_echo(network, client, places[server])
        if shutil.which("sshd") and shutil.which("ssh"):
            start_ssh(network, state, places)
            paths += [Route("ssh", client, ("127.0.0.1", SSH_FORWARD)) for client, _ in ways]
        results: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for path in paths:
                for quantity, value in measure(network, path).items():
                    results[path.client, quantity, path.kind].append(value)
    print(f"Median of {ROUNDS} rounds, {os.cpu_count()} cores for everything.\n")
    print("| from | | cable | mesh | OpenSSH | mesh / OpenSSH |\n|---|---|---|---|---|---|")
    for client, quantity in dict.fromkeys((client, quantity) for client, quantity, _ in results):
        row = {
            kind: statistics.median(results[client, quantity, kind])
            for kind in ("cable", "mesh", "ssh")
            if results.get((client, quantity, kind))
        }
        ratio = f"{row['mesh'] / row['ssh']:.2f}" if "ssh" in row else "-"
        cells = " | ".join(f"{row[kind]:.2f}" if kind in row else "-" for kind in ("cable", "mesh", "ssh"))
        print(f"| {client} | {quantity} | {cells} | {ratio} |", flush=True)


@contextmanager
def crowded_hub(size: int) -> Iterator[tuple[Network, Process, list[str]]]:
    """A hub with so many invitations."""
    with netns.network(routed=True) as network:
        hub = network.start("head", [*MESH, "hub", "--port", str(PUBLIC_PORT), "--invite", str(size)])
        hub.expect("ready")
        yield network, hub, [hub.expect("invited")["token"] for _ in range(size)]


async def crowd(address: HubAddress, tokens: list[str], state: Path, pid: int) -> dict[str, float]:
    """Nodes without listeners: they join, connect and ping, as agents do."""
    everybody = asyncio.Event()
    complete: set[int] = set()

    async def node(number: int) -> ControlConnection:
        credentials = await join(address, tokens[number], f"node-{number}", state / f"{len(tokens)}-{number}.json")

        def on_frame(frame: Frame) -> None:
            if isinstance(frame, Peers):
                complete.add(number)
                if len(complete) == len(tokens):
                    everybody.set()

        control = await Dialer(address, credentials.fingerprint).connect(ControlConnection(on_frame))
        control.send(Hello(credentials.slot, credentials.key, os.urandom(16)))
        return control

    cpu, start = cpu_s(pid), time.perf_counter()
    controls = await asyncio.gather(*(node(number) for number in range(len(tokens))))
    async with asyncio.timeout(60):
        await everybody.wait()
    took, joining = time.perf_counter() - start, cpu_s(pid) - cpu
    cpu, start = cpu_s(pid), time.perf_counter()
    for beat in range(2):
        for control in controls:
            control.send(Ping(beat))
        await asyncio.sleep(4)
    idle = (cpu_s(pid) - cpu) / (time.perf_counter() - start)
    return {"join_s": took, "join_cpu_s": joining, "idle": idle, "rss": memory(pid)}


def scale() -> None:
    """One hub and more and more nodes."""
    print("\n| nodes | all joined and connected, s | hub's CPU for that, s | idle CPU | hub's memory, MB |")
    print("|---|---|---|---|---|")
    for size in CROWDS:
        with tempfile.TemporaryDirectory() as folder, crowded_hub(size) as (network, hub, tokens):
            pid = hub.popen.pid
            before = memory(pid)
            with network.inside("gpu1"):
                result = asyncio.run(crowd(HubAddress(network.address("head"), PUBLIC_PORT), tokens, Path(folder), pid))
            print(
                f"| {size} | {result['join_s']:.2f} | {result['join_cpu_s']:.2f} | {result['idle']:.2%} "
                f"| {before:.0f} + {result['rss'] - before:.1f} |",
                flush=True,
            )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    if len(sys.argv) > 1:
        kind, address, port, *rest = sys.argv[1:]
        match kind:
            case "serve":
                serve(address, int(port))
            case "bulk":
                bulk(address, int(port), float(rest[0]))
            case "echoes":
                echoes(address, int(port), int(rest[0]))
            case "calls":
                calls(address, int(port), float(rest[0]))
            case "connects":
                connects(address, int(port), int(rest[0]))
        return
    reason = netns.missing()
    if reason is not None:
        sys.exit(f"not run: {reason}")
    compare()
    scale()


if __name__ == "__main__":
    main()
