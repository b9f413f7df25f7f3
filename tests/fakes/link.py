"""A cable between two network namespaces with the delay and the rate of a line across a continent.

``python -m tests.fakes.link NAMESPACE ADDRESS NAMESPACE ADDRESS ONE_WAY_MS MBIT_S`` until it is killed. Two TUN devices
and a queue for each direction: what a kernel's ``netem`` does, where the kernel has none. What comes while a queue is
full (:data:`BUFFER_S` of traffic) is dropped, as routers do.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

#: Of traffic that a direction's queue holds.
BUFFER_S = 0.05
#: Bytes of a packet. Larger than the Internet's, or this program would be the slowest part of the line.
MTU = 9000
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


class Direction:
    """From one device to another."""

    def __init__(self, source: int, sink: int, delay_s: float, bytes_s: float) -> None:
        self.source = source
        self._sink = sink
        self._delay_s = delay_s
        self._bytes_s = bytes_s
        #: When what was sent last has left the sender.
        self._free_at = 0.0
        self._on_the_way: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        """One packet onto the line."""
        packet = os.read(self.source, MTU)
        begins = max(now, self._free_at)
        if begins - now > BUFFER_S:
            return
        self._free_at = begins + len(packet) / self._bytes_s
        self._on_the_way.append((self._free_at + self._delay_s, packet))

    def deliver(self, now: float) -> float | None:
        """What has arrived; seconds until the next one arrives, None if none is on the way."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            os.write(self._sink, self._on_the_way.popleft()[1])
        return self._on_the_way[0][0] - now if self._on_the_way else None


def device(namespace: str, address: str) -> int:
    """A TUN device with that address (with its prefix) in that namespace."""
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{namespace}") as away:
        _enter(away.fileno())
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14x", b"wan0", _IFF_TUN | _IFF_NO_PI))
        for words in (("address", "add", address, "dev", "wan0"), ("link", "set", "wan0", "mtu", str(MTU), "up")):
            subprocess.run(["ip", *words], check=True)
        _enter(home.fileno())
    return descriptor


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def main() -> None:
    one, its_address, other, others_address, delay_ms, mbit_s = sys.argv[1:]
    near, far = device(one, its_address), device(other, others_address)
    line = float(delay_ms) / 1000, float(mbit_s) * 1e6 / 8
    directions = [Direction(near, far, *line), Direction(far, near, *line)]
    print('{"event": "ready"}', flush=True)
    while True:
        waits = [wait for each in directions if (wait := each.deliver(time.monotonic())) is not None]
        ready, _, _ = select.select([near, far], [], [], max(0.0, min(waits)) if waits else None)
        for each in directions:
            if each.source in ready:
                each.take(time.monotonic())


if __name__ == "__main__":
    main()
