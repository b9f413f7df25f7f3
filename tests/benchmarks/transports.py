"""The mesh on its own transports against the mesh on asyncio's, over a line as users have: 20 ms and 500 Mbit/s.

``python tests/benchmarks/transports.py`` as root; about six minutes. They take turns in one run. Prints a Markdown
table; ``docs/decisions/0007`` says what followed from it.
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc

sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.mesh.plan import slot
from tests.benchmarks import mesh
from tests.fakes import netns
from tests.fakes.netns import Network, Process

ROUNDS = 4
ONE_WAY_MS, MBIT_S = 10, 500
CALLS_S = 4.0
#: Between two calls, as between a replica's reports and heartbeats, only more of them.
PAUSE_S = 0.01
CALLERS, CALL_BYTES = 8, 1024
FLOWS = 200
HEAD, NODE, PORT = "10.78.0.1", "10.78.0.2", 2222
WAYS = (("gpu1", "head"), ("head", "gpu1"))
KINDS = ("ours", "asyncio")


# asyncio's transports in the place of ours: only what the mesh asks of them.


class StockTls:
    """What the handshake needs, and its result."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self.context, self.server_side, self.server_hostname = context, server_side, server_hostname
        self.transport: asyncio.Transport | None = None

    def certificate(self) -> bytes | None:
        assert self.transport is not None
        ended: ssl.SSLObject = self.transport.get_extra_info("ssl_object")
        return ended.getpeercert(binary_form=True)


class _Unclaimed(asyncio.Protocol):
    """Until the connection's protocol is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).pause_reading()


async def stock_handshake(sock: socket.socket, tls: StockTls) -> None:
    loop = asyncio.get_running_loop()
    if tls.server_side:
        transport, _ = await loop.connect_accepted_socket(_Unclaimed, sock, ssl=tls.context)
    else:
        transport, _ = await loop.create_connection(
            _Unclaimed, sock=sock, ssl=tls.context, server_hostname=tls.server_hostname
        )
    tls.transport = transport


def stock_tls_transport(sock: socket.socket, protocol: asyncio.Protocol, tls: StockTls) -> None:
    assert tls.transport is not None
    tls.transport.set_protocol(protocol)
    protocol.connection_made(tls.transport)
    tls.transport.resume_reading()


def stock_tcp_transport(sock: socket.socket, protocol: asyncio.Protocol) -> None:
    # What loop.connect_accepted_socket makes, and at once, as ours are made.
    loop: Any = asyncio.get_running_loop()
    transport = loop._make_socket_transport(sock, asyncio.Protocol())
    transport.set_protocol(protocol)
    protocol.connection_made(transport)


def stock(arguments: list[str]) -> None:
    """An end of the mesh on asyncio's transports."""
    from cluster.mesh import acceptor, agent, dialer, listeners, router
    from tests.parts.cluster.mesh import process

    for module in (acceptor, dialer):
        changed = cast("Any", module)
        changed.Tls, changed.handshake, changed.TlsTransport = StockTls, stock_handshake, stock_tls_transport
    for module in (agent, listeners, router):
        cast("Any", module).TcpTransport = stock_tcp_transport
    # uvloop's transports read one connection up to 32 times in a row, so these run on asyncio's own loop.
    cast("Any", process.uvloop).install = lambda: None
    sys.argv[1:] = arguments
    process.main()


# The load.


def serve_calls(address: str, port: int) -> None:
    """A gRPC server as Ray's processes are, whose one method answers as much as it is asked."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mesh", {"Echo": handler}),))
    server.add_insecure_port(f"{address}:{port}")
    server.start()
    print('{"event": "ready"}', flush=True)
    server.wait_for_termination()


def calls(address: str, port: int, seconds: float) -> None:
    """gRPC calls of 1 KiB each way, some at a time, with pauses; milliseconds."""
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        echo = channel.unary_unary("/mesh/Echo")

        def caller(seconds: float) -> list[float]:
            took = []
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                echo(bytes(CALL_BYTES), timeout=30, wait_for_ready=True)
                took.append((time.perf_counter() - start) * 1e3)
                time.sleep(PAUSE_S)
            return took

        caller(0.1)
        print('{"event": "started"}', flush=True)
        with futures.ThreadPoolExecutor(CALLERS) as callers:
            took = [each for found in callers.map(caller, [seconds] * CALLERS) for each in found]
    print(json.dumps({"event": "done", "took_ms": took}), flush=True)


def start(network: Network, machine: str, *arguments: object) -> Process:
    return network.start(machine, [sys.executable, __file__, *map(str, arguments)])


def build(stack: contextlib.ExitStack, kind: str, state: Path) -> tuple[Network, dict[str, Process]]:
    """Two machines on the line and the mesh over it, with servers at both ends; and the mesh's two processes."""
    network = stack.enter_context(netns.network(routed=True, prefix=f"va-{os.getpid()}-{len(kind)}"))
    line = [network.name("head"), f"{HEAD}/30", network.name("gpu1"), f"{NODE}/30", str(ONE_WAY_MS), str(MBIT_S)]
    network.start("internet", [sys.executable, "-m", "tests.fakes.link", *line]).expect("ready")
    end = mesh.MESH if kind == "ours" else [sys.executable, __file__, "stock"]
    hub = network.start("head", [*end, "hub", "--port", str(PORT), "--invite", "1"])
    there = ["agent", "--hub", f"{HEAD}:{PORT}", "--state", str(state / kind)]
    agent = network.start("gpu1", [*end, *there], {"MESH_TOKEN": hub.expect("invited")["token"]})
    agent.expect("ready")
    for machine, number in mesh.SLOTS.items():
        address, (bulk_port, call_port) = slot(number).address, slot(number).workers[:2]
        mesh.start(network, machine, "serve", address, bulk_port).expect("ready")
        start(network, machine, "serve-calls", address, call_port).expect("ready")
    for client, server in WAYS:
        mesh.until_echo(network, client, (slot(mesh.SLOTS[server]).address, slot(mesh.SLOTS[server]).workers[0]))
    return network, {"hub": hub, "agent": agent}


def memory_of_flows(network: Network, ends: Mapping[str, Process]) -> dict[str, list[float]]:
    """What a flow that is open and idle costs each end, KiB. Ray keeps tens of them per node."""
    place = slot(mesh.SLOTS["head"])
    before = {name: mesh.memory(end.popen.pid) for name, end in ends.items()}
    held = []
    for _ in range(FLOWS):
        client = network.socket("gpu1")
        client.connect((place.address, place.workers[0]))
        client.sendall(b"ex")
        assert client.recv(1) == b"x"
        held.append(client)
    after = {name: mesh.memory(end.popen.pid) for name, end in ends.items()}
    for client in held:
        client.close()
    return {f"memory of a flow, {name}, KiB": [(after[name] - before[name]) * 1e6 / 1024 / FLOWS] for name in ends}


def measure(network: Network, client: str, server: str) -> dict[str, list[float]]:
    """Calls from one machine to the other, alone and beside bulk transfers."""
    place = {machine: slot(number) for machine, number in mesh.SLOTS.items()}

    def called() -> list[float]:
        process = start(network, client, "calls", place[server].address, place[server].workers[1], CALLS_S)
        process.expect("started")
        took: list[float] = process.expect("done")["took_ms"]
        process.popen.wait()
        return took

    found = {"call alone": called()}
    for name, sender, receiver in (("with", client, server), ("against", server, client)):
        to = place[receiver]
        running = mesh.start(network, sender, "bulk", to.address, to.workers[0], CALLS_S + 3)
        running.expect("started")
        # Past TCP's slow start.
        time.sleep(1)
        found[f"call {name} a bulk transfer"] = called()
        found[f"bulk transfer ({name}), Mbit/s"] = [running.expect("done")["gbit_s"] * 1000]
        running.popen.wait()
    return found


def main() -> None:
    match sys.argv[1:]:
        case ["stock", *arguments]:
            stock(arguments)
        case ["serve-calls", address, port]:
            serve_calls(address, int(port))
        case ["calls", address, port, seconds]:
            calls(address, int(port), float(seconds))
        case _:
            if reason := netns.missing():
                sys.exit(f"not run: {reason}")
            compare()


def compare() -> None:
    results: defaultdict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        meshes = {kind: build(stack, kind, folder) for kind in KINDS}
        for _ in range(ROUNDS):
            for client, server in WAYS:
                for kind, (network, _) in meshes.items():
                    for quantity, values in measure(network, client, server).items():
                        results[client, quantity][kind] += values
        for kind, built in meshes.items():
            for quantity, values in memory_of_flows(*built).items():
                results["gpu1", quantity][kind] += values
    print(f"{ROUNDS} rounds; {2 * ONE_WAY_MS} ms there and back, {MBIT_S} Mbit/s; {os.cpu_count()} cores.\n")
    print("| from | | calls | ours | asyncio | ratio |\n|---|---|---|---|---|---|")
    for (client, quantity), by_kind in results.items():
        count = len(by_kind["ours"])
        shown = {"median": statistics.median}
        if count > 100:
            shown = {f"p{centile}, ms": partial(_centile, centile) for centile in (50, 90, 99)}
        for name, summary in shown.items():
            ours, stock = (summary(by_kind[kind]) for kind in KINDS)
            print(f"| {client} | {quantity} {name} | {count} | {ours:.1f} | {stock:.1f} | {stock / ours:.2f} |")


def _centile(number: int, values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[number - 1]


if __name__ == "__main__":
    main()
