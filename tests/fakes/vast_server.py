"""The fake Vast on a port of 127.0.0.1, for tests and for processes that they start (``VAST_URL``).

::

    async with VastServer(FakeVast([offer(1)])) as server:
        server.fail("rent", Fault(status=500, worked=True))
        async with VastClient(KEY, server.url) as client: …

``GET /__fake/bill`` says what each instance has cost so far.
"""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.fakes.http_source import HttpSource, Seen, reply
from tests.fakes.vast import KEY, FakeVast, Wrong

#: How Vast words one and the same error, with its status, as the mood takes it.
SHAPES = {
    "all": lambda wrong: {"success": False, "error": wrong.code, "msg": wrong.message},
    "msg": lambda wrong: {"success": False, "msg": f"error {wrong.code}: {wrong.message}"},
    "message": lambda wrong: {"message": f"{wrong.code} {wrong.message}"},
    "detail": lambda wrong: {"detail": [{"type": wrong.code, "loc": ["body"]}]},
    "text": lambda wrong: f"{wrong.code}: {wrong.message}",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one request."""

    status: int = 500
    body: bytes = b"Internal Server Error"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: What was asked for is done first.
    worked: bool = False
    #: The connection ends without an answer, or there is none for as long as the client stays.
    cut: bool = False
    silent: bool = False


def too_many(retry_after: str | None = None) -> Fault:
    """429, in plain text."""
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    return Fault(status=429, body=b"API requests too frequent endpoint threshold=3.0", headers=headers)


class VastServer:
    """``shape`` is one of ``SHAPES``."""

    def __init__(self, vast: FakeVast, *, shape: str = "all", socket: Path | None = None) -> None:
        self.vast = vast
        self.shape = shape
        self._http = HttpSource({}, otherwise=self._answer, socket=socket)
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)

    def fail(self, endpoint: str, *faults: Fault) -> None:
        """The next requests to it, one each."""
        self._faults[endpoint].extend(faults)

    @property
    def url(self) -> str:
        return self._http.url("")

    @property
    def seen(self) -> list[Seen]:
        """Requests as they came, with the headers."""
        return self._http.seen

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if (answer := await self.answer(seen)) is None:
            return writer.transport.abort()
        status, body, more = answer
        return await reply(status, body, **more, Connection="close")(seen, writer)

    async def answer(self, seen: Seen) -> tuple[int, bytes, Mapping[str, str]] | None:
        """Status, body and headers; None: the connection is cut."""
        parts = urlsplit(seen.target)
        if parts.path == "/__fake/bill":
            return 200, json.dumps(self.vast.bill()).encode(), {"Content_Type": "application/json"}
        endpoint = _endpoint(seen.method, parts.path)
        if endpoint is None:
            return 404, b"<html>no such page</html>", {}
        key = seen.headers.get("authorization", "").removeprefix("Bearer ")
        self.vast.arrive(endpoint, key)
        fault = self._faults[endpoint].popleft() if self._faults[endpoint] else None
        if fault is None or fault.worked:
            status, body, more = self._work(endpoint, seen, key)
        if fault is not None:
            if fault.silent:
                await asyncio.Event().wait()
            if fault.cut:
                return None
            status, body, more = fault.status, fault.body, fault.headers
        return status, body, more

    def _work(self, endpoint: str, seen: Seen, key: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Do it; status, body and headers of the answer."""
        try:
            done = self._do(endpoint, seen, key)
        except Wrong as wrong:
            said: Any = SHAPES[self.shape](wrong)
            if wrong.extra:
                said = {**SHAPES["all"](wrong), **wrong.extra}
            headers = {}
            if wrong.code == "search_quota_exceeded":
                midnight = self.vast.clock.now().replace(hour=0, minute=0, second=0).timestamp() + 86400
                headers = {"X_RateLimit_Reset": str(int(midnight))}
            return wrong.status, said.encode() if isinstance(said, str) else json.dumps(said).encode(), headers
        return 200, json.dumps(done).encode(), {"Content_Type": "application/json"}

    def _do(self, endpoint: str, seen: Seen, key: str) -> Mapping[str, Any]:
        parts = urlsplit(seen.target)
        last = parts.path.rstrip("/").rpartition("/")[2]
        number = int(last) if last.isdecimal() else 0
        if key != KEY:
            contract = self.vast.contracts.get(number)
            # A container's own key is good for its own end.
            if endpoint != "destroy" or contract is None or contract.key != key:
                raise Wrong(401, "auth_error", f"Invalid user key {key}")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match endpoint:
            case "search":
                return self.vast.search(json.loads(seen.body))
            case "rent":
                return self.vast.rent(number, json.loads(seen.body))
            case "list":
                return self.vast.list(int(query.get("limit", "25")), int(query.get("after_token", "0")))
            case "show":
                return self.vast.show(number)
            case "destroy":
                return self.vast.destroy(number)
            case "charges":
                filters = json.loads(query.get("select_filters", "{}"))
                return self.vast.charges(filters, int(query.get("limit", "20")), int(query.get("after_token", "0")))
            case _:
                return self.vast.account()


def _endpoint(method: str, path: str) -> str | None:
    kind = (method, *path.strip("/").split("/")[:3])
    number = path.rstrip("/").rpartition("/")[2].isdecimal()
    # Without the slash at the end Vast redirects.
    if not path.endswith("/"):
        return None
    return {
        ("POST", "api", "v0", "bundles", False): "search",
        ("PUT", "api", "v0", "asks", True): "rent",
        ("GET", "api", "v1", "instances", False): "list",
        ("GET", "api", "v0", "instances", True): "show",
        ("DELETE", "api", "v0", "instances", True): "destroy",
        ("GET", "api", "v0", "users", False): "account",
        ("GET", "api", "v0", "charges", False): "charges",
    }.get((*kind, number))
