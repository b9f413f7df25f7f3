"""Transports without sockets, moved by hand: bytes lie in ``out`` until somebody takes them."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable


class FakeSocket:
    """Notes whether the connection will end by a reset."""

    def __init__(self) -> None:
        self.will_reset = False

    def fileno(self) -> int:
        return 0

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self.will_reset = True


class Turns:
    """What an event loop would call at its next turn."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def run(self) -> None:
        while self._soon:
            self._soon.popleft()()


class FakeTransport(asyncio.Transport):
    """Behaves as ``transports`` does; ``half_closes``: as TCP, else as TLS."""

    def __init__(self, turns: Turns, protocol: asyncio.Protocol, *, half_closes: bool) -> None:
        self.socket = FakeSocket()
        super().__init__({"socket": self.socket})
        self._turns = turns
        self._protocol = protocol
        self._half_closes = half_closes
        self.out = bytearray()
        self.most = 0
        self.reading = True
        self.eof_wanted = self.closing = self.lost = self.cut = False
        self._high, self._low = 64 * 1024, 16 * 1024
        self._writing_paused = False
        protocol.connection_made(self)

    # What a protocol calls

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self._high, self._low = high, low

    def get_write_buffer_size(self) -> int:
        return len(self.out)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or self.eof_wanted:
            return
        self.out += data
        self.most = max(self.most, len(self.out))
        if len(self.out) > self._high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        assert self._half_closes
        self.eof_wanted = True

    def close(self) -> None:
        self.closing = True
        if self._half_closes:
            self.reading = False
            self._close_if_flushed()

    def abort(self) -> None:
        self.out.clear()
        self.cut = not self.lost
        self.lose(None)

    # What the network does

    def take(self, count: int) -> bytes:
        """So many of the bytes that wait here are on their way."""
        taken = bytes(self.out[:count])
        del self.out[:count]
        if self._writing_paused and len(self.out) <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._half_closes:
            self._close_if_flushed()
        return taken

    @property
    def has_ended(self) -> bool:
        """Everything has gone, and nothing follows."""
        return not self.out and not self.cut and (self.eof_wanted or self.closing)

    def give(self, data: bytes) -> None:
        """Bytes arrive."""
        if not self.closing:
            self._protocol.data_received(data)

    def end(self) -> None:
        """The other end sends no more."""
        if self.lost:
            return
        keeps_open = not self.closing and self._protocol.eof_received()
        if not self._half_closes:
            self.lose(None)
        elif not keeps_open:
            self.close()

    def lose(self, error: Exception | None) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = self.closing = True
            self._turns.call_soon(lambda: self._protocol.connection_lost(error))

    def _close_if_flushed(self) -> None:
        if self.closing and not self.out:
            self.lose(None)
