"""A PaaS head and two NATed GPU machines on one box: network namespaces that see of each other what those would.

``head``, ``gpu1`` and ``gpu2`` each hang on ``internet`` by a cable of their own, and ``internet`` forwards no packets.
The only way through it is a TCP forwarder on ``internet`` that leads to one port of the head: the PaaS's TCP proxy and
the nodes' NAT at once. ``head2`` is where the next head runs after a redeploy. Needs root. ``routed=True`` lets packets
through instead, to measure what a cable can do.
"""

import ctypes
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MACHINES = ("head", "gpu1", "gpu2", "head2")
#: Where nodes dial, and what it leads to.
PUBLIC_PORT = 2222
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

#: From a port of its own to another machine's, or to a Unix socket here.
_FORWARDER = """
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(262144):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (OSError, RuntimeError):  # uvloop's word for a transport that has closed
        writer.transport.abort()
async def serve(reader, writer):
    try:
        if sys.argv[1].startswith("/"):
            far_reader, far_writer = await asyncio.open_unix_connection(sys.argv[1])
        else:
            far_reader, far_writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    except OSError:
        writer.transport.abort()
        return
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    for one in (writer, far_writer):
        one.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[3:] or "0.0.0.0", int(sys.argv[2]))
    print('{"event": "ready"}', flush=True)
    await server.serve_forever()
import uvloop
uvloop.run(main())
"""


def missing() -> str | None:
    """Why there can be no namespaces here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    probe = f"va-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "the kernel or the container allows no network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass
class Process:
    """A program in a namespace that prints one JSON object per line."""

    popen: subprocess.Popen[str]
    lines: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)

    def expect(self, event: str, timeout_s: float = 60) -> dict[str, Any]:
        """The next line of that ``event``; others are skipped."""
        while True:
            try:
                line = self.lines.get(timeout=timeout_s)
            except queue.Empty:
                raise AssertionError(f"no {event!r} within {timeout_s} s") from None
            if line.get("event") == event:
                return line

    def stats(self) -> dict[str, Any]:
        """Counters of a mesh's ``process``."""
        self.popen.send_signal(signal.SIGUSR1)
        return self.expect("stats")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send the signal and wait for the end."""
        self.popen.send_signal(number)
        self.popen.wait(timeout=20)


@dataclass
class Network:
    """The namespaces, and what runs in them."""

    routed: bool
    _prefix: str
    _stack: ExitStack = field(default_factory=ExitStack)
    _forwarder: Process | None = None

    def name(self, machine: str) -> str:
        """The namespace's name, for ``ip netns``."""
        return f"{self._prefix}-{machine}"

    def address(self, machine: str) -> str:
        """The machine's own address on its cable."""
        return f"10.77.{MACHINES.index(machine) + 1}.2"

    def hub_address(self, machine: str) -> str:
        """Where that machine reaches the head's single port."""
        return self.address("head") if self.routed else self.gateway(machine)

    def gateway(self, machine: str) -> str:
        """The address of ``internet`` at the other end of the machine's cable."""
        return f"10.77.{MACHINES.index(machine) + 1}.1"

    def run(self, machine: str, *command: str) -> str:
        """Run a command there to its end; what it prints."""
        inside = ["ip", "netns", "exec", self.name(machine), *command]
        return subprocess.run(inside, check=True, capture_output=True, text=True).stdout

    def start(self, machine: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start a program there; it is killed with the network."""
        popen = subprocess.Popen(
            ["ip", "netns", "exec", self.name(machine), *command],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        process = Process(popen)
        self._stack.callback(popen.wait)
        self._stack.callback(popen.kill)

        def read() -> None:
            assert popen.stdout is not None
            for line in popen.stdout:
                process.lines.put(json.loads(line))

        threading.Thread(target=read, daemon=True).start()
        return process

    def socket(self, machine: str) -> socket.socket:
        """A TCP socket that belongs to that machine, in this process."""
        with self.inside(machine):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(60)
        return sock

    @contextmanager
    def inside(self, machine: str) -> Iterator[None]:
        """This thread is on that machine: sockets made here are bound to its network for good."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name(machine)}") as away:
            _enter(away.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def start_forwarder(self, head: str = "head") -> None:
        """The way in; the head's port need not be open yet."""
        self._forwarder = self.forward(self.address(head), PUBLIC_PORT)

    def forward(self, target: str, port: int, *addresses: str) -> Process:
        """``internet`` listens on that port, on all or on these ``addresses`` of its own, and leads to ``target``: the
        same port of an address, or a Unix socket."""
        process = self.start("internet", [sys.executable, "-c", _FORWARDER, target, str(port), *addresses])
        process.expect("ready")
        return process

    def cut_by_reset(self) -> None:
        """The proxy dies: every connection ends, no new one begins. :meth:`start_forwarder` heals it."""
        assert self._forwarder is not None
        self._forwarder.stop(signal.SIGKILL)

    def black_hole(self, machine: str, on: bool, *spared: int) -> None:
        """Every packet to and from that machine vanishes without a word, or no longer; TCP ports ``spared`` of
        ``internet`` are on another network, so to speak."""
        if shutil.which("nft"):
            cable = f'"{machine}"'
            rules = (
                f"add table inet cut; add chain inet cut {machine} {{ type filter hook prerouting priority -300; }}; "
            )
            rules += f"add chain inet cut {machine}-out {{ type filter hook postrouting priority 300; }}; "
            rules += f"flush chain inet cut {machine}; flush chain inet cut {machine}-out; "
            if on:
                ports = ", ".join(map(str, spared or (0,)))
                rules += f"add rule inet cut {machine} iifname {cable} tcp dport != {{ {ports} }} drop; "
                rules += f"add rule inet cut {machine}-out oifname {cable} tcp sport != {{ {ports} }} drop"
            self.run("internet", "nft", rules)
        else:
            self.run("internet", "ip", "link", "set", machine, "down" if on else "up")

    def _build(self) -> None:
        for machine in ("internet", *MACHINES):
            subprocess.run(["ip", "netns", "add", self.name(machine)], check=True)
            self._stack.callback(subprocess.run, ["ip", "netns", "del", self.name(machine)])
            self.run(machine, "ip", "link", "set", "lo", "up")
        self.run("internet", "sysctl", "-qw", f"net.ipv4.ip_forward={int(self.routed)}")
        for machine in MACHINES:
            self._plug_in(machine)

    def plug_in_anew(self, machine: str) -> None:
        """A new cable: what is counted of its traffic begins at nothing."""
        self.run(machine, "ip", "link", "del", "eth0")
        self._plug_in(machine)

    def _plug_in(self, machine: str) -> None:
        number = MACHINES.index(machine) + 1
        near, far = self.name(machine), self.name("internet")
        cable = ["ip", "link", "add", "eth0", "netns", near, "type", "veth", "peer", "name", machine, "netns", far]
        subprocess.run(cable, check=True)
        self.run("internet", "ip", "address", "add", f"10.77.{number}.1/30", "dev", machine)
        self.run("internet", "ip", "link", "set", machine, "up")
        self.run(machine, "ip", "address", "add", f"10.77.{number}.2/30", "dev", "eth0")
        self.run(machine, "ip", "link", "set", "eth0", "up")
        self.run(machine, "ip", "route", "add", "default", "via", f"10.77.{number}.1")


@contextmanager
def network(routed: bool = False, prefix: str | None = None) -> Iterator[Network]:
    """Build it, and take it and everything in it away again. ``prefix`` of its namespaces: where there are several."""
    net = Network(routed, prefix or f"va-{os.getpid()}")
    with net._stack:
        net._build()
        if not routed:
            net.start_forwarder()
        yield net


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
