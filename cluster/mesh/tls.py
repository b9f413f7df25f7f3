"""TLS apart from any socket: records in, plaintext out, and the other way round. The ``ssl`` module's, over buffers."""

import asyncio
import contextlib
import socket
import ssl
from typing import cast

#: The greatest plaintext of a record.
RECORD = 16 * 1024

Bytes = bytes | bytearray | memoryview


class Tls:
    """One side of one connection."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        #: The other side has said that it sends no more.
        self.ended = False
        self._object = context.wrap_bio(self.incoming, self._outgoing, server_side, server_hostname)

    async def shake(self, sock: socket.socket) -> None:
        """The handshake. Raises ssl.SSLError, and OSError if the other side leaves."""
        loop = asyncio.get_running_loop()
        done = False
        while not done:
            try:
                self._object.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                # If it failed, this says why.
                if said := self._outgoing.read():
                    await loop.sock_sendall(sock, said)
            if not done:
                received = await loop.sock_recv(sock, RECORD)
                if not received:
                    raise ConnectionAbortedError("the other side left in the middle of TLS's handshake")
                self.incoming.write(received)

    def certificate(self) -> bytes | None:
        """The other side's, DER."""
        return self._object.getpeercert(binary_form=True)

    def read(self, room: memoryview) -> bytes:
        """Everything that came in, decrypted; sets :attr:`ended`. ``room`` has space for it. Raises ssl.SSLError."""
        total = 0
        try:
            # A record is decrypted whole, so nothing stays behind inside.
            data = self._object.read(RECORD)
            if not self.incoming.pending:
                # Small calls: one record, all of it.
                self.ended = not data
                return data
            total = len(data)
            room[:total] = data
            # Only while there is something: one question too many is answered by an exception.
            while self.incoming.pending and not self.ended:
                count = cast("int", self._object.read(len(room), room[total:]))
                self.ended = not count
                total += count
        except ssl.SSLWantReadError:
            pass
        return bytes(room[:total])

    def records(self, *parts: Bytes) -> bytes:
        """Encrypt. Also returns what TLS itself has to say."""
        for part in parts:
            done = self._object.write(part)
            while done < len(part):
                # A record at a time.
                done += self._object.write(memoryview(part)[done:])
        return self._outgoing.read()

    def owed(self) -> bytes:
        """What TLS has to say of itself: an answer to new keys, an alert."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def farewell(self) -> bytes:
        """The record that ends this direction."""
        # It fails: the other side's has not come, or the connection is broken already.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()
