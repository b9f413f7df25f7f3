"""The HTTP port of a head that waits for its turn.

A platform stops the old head only when the new one's ``/health`` answers 200. So a head that waits for nothing but the
other's end has to say that it is fit; everything else is told to come back.

By hand, since strangers reach it: no head, body or reader holds anything for longer than five seconds, which servers
from libraries don't promise, and the one of the API is the service's.
"""

import asyncio
from typing import Self

_ANSWER = (
    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}connection: close\r\n\r\n"
)


class Standby:
    """``async with`` it. :attr:`fit`: nothing is missing here but the lock."""

    def __init__(self, port: int, host: str = "0.0.0.0") -> None:  # noqa: S104 - the service's public port
        self.fit = False
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                path = (await reader.readuntil(b"\r\n")).split(b" ")[1].split(b"?")[0]
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
            if path == b"/health" and self.fit:
                status, more, body = "200 OK", "", '{"api": "standby"}'
            else:
                status, more, body = (
                    "503 Service Unavailable",
                    "retry-after: 5\r\n",
                    '{"error": "The service restarts."}',
                )
            writer.write((_ANSWER.format(status=status, length=len(body), more=more) + body).encode())
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            # Not HTTP, or gone: nobody to answer.
            pass
        finally:
            writer.close()
