"""What a GPU node does that has turned, as a program: ``python -m tests.e2e.intruder knock|pry …`` prints JSON.

It has all that a node has: the credentials that the agent keeps, Ray's token, root on its machine, this code.
"""

import asyncio
import ctypes
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from cluster.mesh.dialer import Dialer, HubAddress
from cluster.mesh.identity import Credentials
from cluster.mesh.plan import HEAD, slot
from cluster.mesh.wire import Open, encode
from tests.ports import block

#: What may run beside Ray on a head, by the ports that people use.
USUAL = (22, 80, 443, 2222, 5432, 6379, 8000, 8265, 9090, 10001)
_PTRACE_ATTACH = 16


def main() -> None:
    verb, *arguments = sys.argv[1:]
    asyncio.run({"knock": knock, "pry": pry}[verb](*arguments))


async def knock(hub: str, credentials: str) -> None:
    """Every port of the head and of the other node, by the node's listeners and by the mesh itself."""
    own = Credentials.load(Path(credentials))
    assert own is not None
    others = [number for number in (2, 3) if number != own.slot]
    places = [(1, port) for port in (*block(HEAD), *USUAL)]
    places += [(number, port) for number in others for port in (*block(slot(number)), *USUAL)]
    dialer = Dialer(HubAddress.parse(hub), own.fingerprint)
    print(
        json.dumps(
            {
                "listened": [place for place in places if _connects(slot(place[0]).address, place[1])],
                "carried": [place for place in places if await _is_carried(dialer, own, *place)],
            }
        )
    )


def _connects(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


async def _is_carried(dialer: Dialer, own: Credentials, target: int, port: int) -> bool:
    """Whether the flow stands, or anything is said on it. The hub ends one that it refuses at once."""
    caller = await _opened(dialer, own, target, port)
    await asyncio.wait({caller.answered}, timeout=0.5)
    if not caller.answered.done():
        # Is it the hub that is slow? Once it has ended a later one, it would have ended this one as well.
        later = await _opened(dialer, own, 1, HEAD.dashboard)
        assert not await asyncio.wait_for(later.answered, 60)
        await asyncio.wait({caller.answered}, timeout=0.5)
    caller.transport.abort()
    return not caller.answered.done() or caller.answered.result()


async def _opened(dialer: Dialer, own: Credentials, target: int, port: int) -> "_Caller":
    caller = await dialer.connect(_Caller())
    caller.transport.write(encode(Open(own.slot, own.key, target, port)))
    return caller


class _Caller(asyncio.Protocol):
    """Waits for a byte (True) or the end (False)."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._answer(True)

    def connection_lost(self, error: Exception | None) -> None:
        self._answer(False)

    def _answer(self, answer: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(answer)


async def pry(address: str) -> None:
    """Plain tasks on the head and on the node itself, as in Ray's own examples."""
    import ray

    ray.init(address=f"{HEAD.address}:{HEAD.gcs}", _node_ip_address=address, log_to_driver=False)
    look = ray.remote(num_cpus=0)(_look_around)
    there = look.options(resources={"node:__internal_head__": 0.001}).remote()
    here = look.options(resources={f"node:{address}": 0.001}).remote()
    print(json.dumps({"head": ray.get(there, timeout=60), "node": ray.get(here, timeout=60)}))


def _look_around() -> dict[str, Any]:
    """Runs in a worker. What it can learn of and do to the process that started Ray, and what it sees of all others."""
    attempts: dict[str, Callable[[int], object]] = {
        "environment": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
        "memory": lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
        "descriptors": lambda pid: os.readlink(f"/proc/{pid}/fd/1"),
        "ptrace": _attach,
        "signal": lambda pid: os.kill(pid, 0),
    }
    launchers = list(_launchers())
    assert 1 in launchers
    outcomes = {name: sorted({_outcome(attempt, pid) for pid in launchers}) for name, attempt in attempts.items()}
    return {
        "python": platform.python_version(),
        "uid": os.geteuid(),
        "variables": dict(os.environ),
        "launcher": outcomes,
        "be_root": _outcome(os.setuid, 0),
        "seen": " ".join(_seen()),
    }


def _launchers() -> Iterable[int]:
    """Process 1 and the child that does its work."""
    for pid in _pids():
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        if "serve_app.cli" in words and ("head" in words or "node" in words):
            yield pid


def _seen() -> Iterable[str]:
    """Arguments and variables of all processes, as far as they can be read."""
    for pid in _pids():
        for name in ("cmdline", "environ"):
            try:
                yield Path(f"/proc/{pid}/{name}").read_text(errors="replace")
            except OSError:
                continue


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _outcome(attempt: Callable[[int], object], number: int) -> str:
    try:
        attempt(number)
    except OSError as error:
        return type(error).__name__
    return "done"


def _attach(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")


if __name__ == "__main__":
    main()
