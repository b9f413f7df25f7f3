"""TLS apart from any socket: records in, plaintext out, and the other way round. The ``ssl`` module's, over buffers."""

import contextlib
import ssl
from typing import cast

#: The greatest plaintext of a record.
MAX_RECORD = 16 * 1024

Bytes = bytes | bytearray | memoryview


class Tls:
    """One end of one connection."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        #: The peer has sent its close_notify: nothing more comes.
        self.ended = False
        self._object = context.wrap_bio(self.incoming, self._outgoing, server_side, server_hostname)

    def do_handshake(self) -> bool:
        """Go on with the handshake; True once it is done. Raises ssl.SSLError.

        What there is to send now is in :meth:`pending_output`, after an error too.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def certificate(self) -> bytes | None:
        """The peer's, DER."""
        return self._object.getpeercert(binary_form=True)

    def decrypt(self, buffer: memoryview) -> bytes:
        """Everything that came in, decrypted; sets :attr:`ended`. ``buffer`` has space for it. Raises ssl.SSLError."""
        total = 0
        try:
            # A record is decrypted whole, so nothing stays behind inside.
            data = self._object.read(MAX_RECORD)
            if not self.incoming.pending:
                # A small RPC fits into one record: no copy by way of the buffer.
                self.ended = not data
                return data
            total = len(data)
            buffer[:total] = data
            # Only while there is something: one question too many is answered by an exception.
            while self.incoming.pending and not self.ended:
                count = cast("int", self._object.read(len(buffer), buffer[total:]))
                self.ended = not count
                total += count
        except ssl.SSLWantReadError:
            pass
        return bytes(buffer[:total])

    def encrypt(self, *parts: Bytes) -> bytes:
        """The records of these parts, behind whatever TLS itself has to send."""
        for part in parts:
            done = self._object.write(part)
            while done < len(part):
                # A record at a time.
                done += self._object.write(memoryview(part)[done:])
        return self._outgoing.read()

    def pending_output(self) -> bytes:
        """What TLS has to send of its own: handshake messages, an answer to a key update, an alert."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close_notify(self) -> bytes:
        """The record that ends this direction."""
        # ``unwrap`` raises although the record is written, if the peer's own close_notify has not come yet or the
        # connection is broken.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()
