"""TCP sockets that notice a dead path in seconds, and enough file descriptors for all of them."""

import asyncio
import resource
import socket
import struct

#: Seconds of silence, with something unanswered, after which a path counts as dead.
DEAD_S = 12.0
_IDLE_S, _INTERVAL_S, _PROBES = 5, 5, 3

#: Fields of the kernel's ``struct tcp_info``: unacknowledged segments, milliseconds since the last ACK, bytes ACKed.
_UNACKED, _LAST_ACK_MS, _ACKED = struct.Struct("=24xI"), struct.Struct("=56xI"), struct.Struct("=120xQ")
_INFO_BYTES = 128


def tune(transport: asyncio.BaseTransport, *, always_read: bool = False) -> None:
    """Send without delay, probe when idle. ``always_read``: the other end reads at once whatever is sent.

    Only then may the kernel's own TCP_USER_TIMEOUT be used. It also counts while a *living* peer keeps its window shut,
    so on a flow it would kill a consumer that merely stalls for some seconds; a :class:`PathMonitor` watches flows.
    """
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.fileno() < 0:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    if always_read:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_S * 1000))


def reset(transport: asyncio.Transport) -> None:
    """Close so that the other end sees a reset: an aborted transport alone looks to it like an orderly end."""
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.fileno() >= 0:
        _forget_on_close(sock)
    transport.abort()


def hang_up(sock: socket.socket) -> None:
    """Close a socket that no transport has, so that the kernel keeps nothing of it either: a minute for each of a
    flood's connections would fill its tables."""
    _forget_on_close(sock)
    sock.close()


def _forget_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class PathMonitor:
    """Whether what a connection has sent still gets through. Ask it every few seconds."""

    def __init__(self) -> None:
        self._acked = -1
        self._since = 0.0

    def is_dead(self, transport: asyncio.BaseTransport, now: float) -> bool:
        """True once data has been on its way for :data:`DEAD_S` without any acknowledgement at all."""
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.fileno() < 0:
            return False
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) < _INFO_BYTES:
            return False
        (unacked,), (silent_ms,), (acked,) = (field.unpack_from(info) for field in (_UNACKED, _LAST_ACK_MS, _ACKED))
        if not unacked or acked != self._acked:
            self._acked, self._since = acked if unacked else -1, now
            return False
        # A shut window still acknowledges: then the second condition does not hold.
        return bool(now - self._since >= DEAD_S and silent_ms >= DEAD_S * 1000)


def raise_file_limit() -> int:
    """Allow this process as many file descriptors as it may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
