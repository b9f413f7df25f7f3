"""Load on an HTTP server, from a process of its own: connections that ask again as soon as they are answered.

Reads one JSON object from stdin: ``{"port", "connections", "seconds", "requests": [text of a request, …]}``; writes
one to stdout: ``{"answers", "per_s", "p50_ms", "p99_ms", "statuses": {"200": n}}``.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import cast

import uvloop


class Connection(asyncio.Protocol):
    """One request at a time, of those given, in random order."""

    def __init__(self, requests: list[bytes], until: float, answers: list[float], statuses: Counter[str]) -> None:
        self._requests = requests
        self._until = until
        self._answers = answers
        self._statuses = statuses
        self._buffer = b""
        self._begun = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one, but does not say so.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        at = head.lower().find(b"content-length:")
        if at < 0 or len(body) < int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        self._answers.append(time.perf_counter() - self._begun)
        self._statuses[head[9:12].decode()] += 1
        self._buffer = b""
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._statuses["lost"] += 1
            self.ended.set_result(None)

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        if self._begun >= self._until:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._transport.write(random.choice(self._requests))


async def main() -> None:
    asked = json.loads(sys.stdin.read())
    requests = [text.encode() for text in asked["requests"]]
    answers: list[float] = []
    statuses: Counter[str] = Counter()
    begun = time.perf_counter()
    until = begun + asked["seconds"]
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(requests, until, answers, statuses), "127.0.0.1", asked["port"])
        for _ in range(asked["connections"])
    ]
    await asyncio.gather(*(connection.ended for _, connection in made))
    took = time.perf_counter() - begun
    answers.sort()
    print(
        json.dumps(
            {
                "answers": len(answers),
                "per_s": len(answers) / took,
                "p50_ms": answers[len(answers) // 2] * 1000,
                "p99_ms": answers[len(answers) * 99 // 100] * 1000,
                "statuses": statuses,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
