"""The head as a bootstrap sees it: TLS to its one port, a file or a word at a time."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.mesh.invitation import HUB_NAME, Invitation, client_context, is_pinned
from cluster.mesh.wire import Content, Fetch, Frame, FrameReader, Heard, Reason, Refused, Say, WireError, encode

#: Seconds without a byte.
SILENCE_S = 30.0
_CHUNK = 256 * 1024


class HeadRefuses(Exception):
    """The head has said no. ``reason.final``: asking again is no use."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the head refuses: {reason.name.lower()}")
        self.reason = reason


class Head:
    """Nothing stays open between two calls. All raise OSError if the head can't be reached or the line was cut."""

    def __init__(self, hub: str, token: str) -> None:
        """``hub`` is ``host:port``. Raises ValueError."""
        host, _, port = hub.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._invitation = Invitation.parse(token)

    def fetch(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """A file's bytes from that one on. Raises HeadRefuses, too."""
        with self._asked(Fetch(self._invitation.secret, offset, name)) as (line, reader, answer):
            if not isinstance(answer, Content):
                raise ConnectionError("the head's answer makes no sense")
            left, chunk = answer.size, reader.unread()
            while left:
                chunk = chunk or line.recv(_CHUNK)
                if not chunk or len(chunk) > left:
                    raise ConnectionError("the line was cut")
                left -= len(chunk)
                yield chunk
                chunk = b""

    def say(self, text: str) -> None:
        """Tell it how far this is. Raises HeadRefuses, too."""
        with self._asked(Say(self._invitation.secret, text)) as (_, _, answer):
            if not isinstance(answer, Heard):
                raise ConnectionError("the head's answer makes no sense")

    @contextmanager
    def _asked(self, question: Frame) -> Iterator[tuple[ssl.SSLSocket, FrameReader, Frame]]:
        """The connection after the question, and what it is answered with."""
        with (
            socket.create_connection(self._address, SILENCE_S) as plain,
            client_context().wrap_socket(plain, server_hostname=HUB_NAME) as line,
        ):
            if not is_pinned(line.getpeercert(binary_form=True), self._invitation.fingerprint):
                raise ConnectionError("somebody else answers at the head's address")
            line.sendall(encode(question))
            reader = FrameReader()
            try:
                while (answer := reader.next()) is None:
                    received = line.recv(_CHUNK)
                    if not received:
                        raise ConnectionError("the line was cut")
                    reader.feed(received)
            except WireError as error:
                raise ConnectionError("the head's answer makes no sense") from error
            if isinstance(answer, Refused):
                raise HeadRefuses(answer.reason)
            yield line, reader, answer
