"""A real DNS server on 127.0.0.1. It knows some names, says no to others, and is silent about some."""

import asyncio
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import TracebackType
from typing import Self

_A, _AAAA = 1, 28
_SERVFAIL, _NXDOMAIN = 2, 3


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """``async with NameServer({"a.test": ["127.0.0.1"]}, silent=("hole.test",)) as server: … server.address``

    ``silent`` and ``broken`` are names or the domains of names about which it says nothing or SERVFAIL. TTLs are 0.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    silent: Sequence[str] = ()
    broken: Sequence[str] = ()
    #: Seconds until it knows a name that it's asked for the first time; then it answers all who have asked.
    slow_s: float = 0
    #: Questions for an IPv4 address, by name; with repetitions.
    asked: Counter[str] = field(default_factory=Counter)
    _known: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._transport.get_extra_info('sockname')[1]}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        name, kind, end = _question(data)
        if kind == _A:
            self.asked[name] += 1
        if _within(name, self.silent):
            return
        found = [ip_address(text).packed for text in self.names.get(name, ())]
        wanted = [packed for packed in found if len(packed) == (4 if kind == _A else 16)]
        code = _SERVFAIL if _within(name, self.broken) else 0 if name in self.names else _NXDOMAIN
        head = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(wanted), 0, 0)
        answers = [struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed for packed in wanted]
        reply = head + data[12:end] + b"".join(answers)
        loop = asyncio.get_running_loop()
        loop.call_at(self._known.setdefault((name, kind), loop.time() + self.slow_s), self._reply, reply, address)

    def _reply(self, reply: bytes, address: tuple[str, int]) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(reply, address)


def _question(data: bytes) -> tuple[str, int, int]:
    at, labels = 12, []
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels).lower(), struct.unpack(">H", data[at + 1 : at + 3])[0], at + 5


def _within(name: str, domains: Sequence[str]) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)
