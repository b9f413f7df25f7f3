"""Ports of TCP and UDP for tests: free ones, and those of a slot of the mesh."""

import itertools
import os
import socket

from cluster.mesh.plan import FIRST_PORT, PORTS_PER_SLOT, Slot

#: Above those that Linux hands out by itself: no client's socket takes one between the probe and whoever is to listen.
_FIRST, _END = 61_000, 65_536
#: Of each worker of pytest-xdist, so that none takes what another has just probed. A run without workers is a worker.
_PER_WORKER = 256
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % ((_END - _FIRST) // _PER_WORKER)
_OWN = range(_FIRST + _WORKER * _PER_WORKER, _FIRST + (_WORKER + 1) * _PER_WORKER)
#: Begins anywhere: beside this run there may be another one.
_BEGIN = os.getpid() % _PER_WORKER
_turns = itertools.cycle([*_OWN[_BEGIN:], *_OWN[:_BEGIN]])


def free_port() -> int:
    """Where nobody listens. It comes again only after all others of this worker."""
    for port in itertools.islice(_turns, _PER_WORKER):
        if all(_is_free(port, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            return port
    raise OSError(f"none of {_OWN} is free")


def block(slot: Slot) -> range:
    """The port numbers that nobody but that slot uses."""
    first = FIRST_PORT + (slot.number - 1) * PORTS_PER_SLOT
    return range(first, first + PORTS_PER_SLOT)


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    """On every address."""
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
