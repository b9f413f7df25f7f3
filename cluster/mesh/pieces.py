"""The stream of a data connection, after its first frame.

It needs an end of its own, because TLS transports can't be closed one way: every piece of data is preceded by its
length, ``END`` says that nothing follows, and ``DONE`` that the other's end has arrived. Only after both may a
connection be closed; one that closes earlier was cut, and the reader sees a reset and not an end.
"""

import struct
from collections.abc import Callable

from cluster.mesh.wire import WireError

#: Bytes in one piece of a stream. Readers keep no buffer of that size; this only bounds what can be claimed.
MAX_PIECE = 1 << 20
PIECE = struct.Struct("!I")
END = PIECE.pack(0)
DONE = PIECE.pack(0xFFFFFFFF)


class PieceReader:
    """Takes a data connection's bytes as they come and calls back with the data, END and DONE. Keeps no data."""

    def __init__(
        self, data: Callable[[bytes | memoryview], None], end: Callable[[], None], done: Callable[[], None]
    ) -> None:
        self._data, self._end, self._done = data, end, done
        self._left = 0
        self._prefix = b""
        self._ended = self._seen_done = False

    def feed(self, chunk: bytes) -> None:
        """Raises :class:`WireError` at the first wrong byte; what was right before it has been delivered."""
        position, size = 0, len(chunk)
        if not (self._left or self._prefix or self._ended) and PIECE.size < size <= MAX_PIECE:
            # A small RPC: the chunk is exactly one piece.
            (length,) = PIECE.unpack_from(chunk)
            if length == size - PIECE.size:
                self._data(chunk[PIECE.size :])
                return
        view = memoryview(chunk)
        while position < size:
            if self._left:
                stop = min(position + self._left, size)
                self._left -= stop - position
                self._data(view[position:stop])
                position = stop
                continue
            stop = min(position + PIECE.size - len(self._prefix), size)
            prefix = self._prefix + chunk[position:stop]
            position = stop
            if len(prefix) < PIECE.size:
                self._prefix = prefix
                return
            self._prefix = b""
            self._begin(prefix)

    def _begin(self, prefix: bytes) -> None:
        if prefix == DONE and not self._seen_done:
            self._seen_done = True
            self._done()
        elif self._ended:
            raise WireError("data after the end of a stream")
        elif prefix == END:
            self._ended = True
            self._end()
        else:
            (length,) = PIECE.unpack(prefix)
            if length > MAX_PIECE:
                raise WireError("piece of a wrong length")
            self._left = length
