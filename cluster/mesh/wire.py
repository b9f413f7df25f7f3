"""What goes over a mesh connection once TLS is up: frames, and after a data connection's first frame, a stream.

A frame is magic, version, kind and length (6 bytes, big-endian), then a payload whose length must fit its kind exactly.
For the stream see ``pieces``.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from cluster.mesh.plan import SLOTS

VERSION = 1
#: Bytes of secrets and of their hashes.
SECRET_BYTES = 32
FLOW_ID_BYTES = 16
MAX_NAME_BYTES = 64
#: Of a file's name: a wheel's is often longer than a node's.
MAX_FILE_NAME_BYTES = 255
#: Of what a node says of itself.
MAX_TEXT_BYTES = 1024

_MAGIC = b"vm"
_HEADER = struct.Struct("!2sBBH")


class WireError(Exception):
    """The bytes are not this protocol. Never holds any of them: they may be secret."""


class Reason(IntEnum):
    """Why the hub says no."""

    BAD_TOKEN = 1
    TOKEN_EXPIRED = 2
    BAD_KEY = 3
    REVOKED = 4
    REPLACED = 5
    UNAVAILABLE = 6
    NOT_THERE = 7

    @property
    def final(self) -> bool:
        """Asking again would get the same answer."""
        return self is not Reason.UNAVAILABLE


@dataclass(frozen=True)
class Join:
    """Node to hub: bind this key to the slot that the token was made for. May be repeated with the same key."""

    secret: bytes = field(repr=False)
    key_hash: bytes = field(repr=False)
    name: str


@dataclass(frozen=True)
class Joined:
    """Hub to node: the key is good for this slot."""

    slot: int


@dataclass(frozen=True)
class Hello:
    """Node to hub: this is my control connection from now on. ``instance`` tells processes with one key apart."""

    slot: int
    key: bytes = field(repr=False)
    instance: bytes


@dataclass(frozen=True)
class Open:
    """Node to hub: carry a flow to that slot, which is the head, and port. The stream follows at once."""

    slot: int
    key: bytes = field(repr=False)
    target: int
    port: int


@dataclass(frozen=True)
class Accept:
    """Node to hub: the data connection for a :class:`Dial`. The stream follows at once."""

    slot: int
    key: bytes = field(repr=False)
    flow: bytes


@dataclass(frozen=True)
class Peers:
    """Hub to node: the slots that it can reach. The answer to :class:`Hello`."""

    slots: tuple[int, ...]


@dataclass(frozen=True)
class Dial:
    """Hub to node: connect to your own port and come back with an :class:`Accept`."""

    flow: bytes
    port: int


@dataclass(frozen=True)
class Undialable:
    """Node to hub: nothing answers on the port of that :class:`Dial`."""

    flow: bytes


@dataclass(frozen=True)
class Ping:
    """Either way: answer with the same number."""

    number: int


@dataclass(frozen=True)
class Pong:
    """Either way: the answer to a :class:`Ping`."""

    number: int


@dataclass(frozen=True)
class Refused:
    """Hub to node, the last thing it says."""

    reason: Reason


@dataclass(frozen=True)
class Fetch:
    """Invited, not joined, to hub: send that file from that byte on. Does not use the invitation up."""

    secret: bytes = field(repr=False)
    offset: int
    name: str


@dataclass(frozen=True)
class Content:
    """Hub to whoever fetches: so many bytes follow, as they are; then the connection ends."""

    size: int


@dataclass(frozen=True)
class Say:
    """Invited, not joined, to hub: how far it is. Does not use the invitation up."""

    secret: bytes = field(repr=False)
    text: str


@dataclass(frozen=True)
class Heard:
    """Hub to whoever says something: the answer to :class:`Say`."""


@dataclass(frozen=True)
class Report:
    """Node to hub, on its control connection: how far it is."""

    text: str


#: To and from those who have been invited and have not joined.
Visit: TypeAlias = Join | Joined | Fetch | Content | Say | Heard
Frame: TypeAlias = Visit | Hello | Open | Accept | Peers | Dial | Undialable | Ping | Pong | Report | Refused

_SLOT = struct.Struct("!H")
_JOIN = struct.Struct(f"!{SECRET_BYTES}s{SECRET_BYTES}s")
_HELLO = struct.Struct(f"!H{SECRET_BYTES}s{FLOW_ID_BYTES}s")
_OPEN = struct.Struct(f"!H{SECRET_BYTES}sHH")
_DIAL = struct.Struct(f"!{FLOW_ID_BYTES}sH")
_FLOW = struct.Struct(f"!{FLOW_ID_BYTES}s")
_NUMBER = struct.Struct("!I")
_REASON = struct.Struct("!B")
_FETCH = struct.Struct(f"!{SECRET_BYTES}sQ")
_SIZE = struct.Struct("!Q")


def encode(frame: Frame) -> bytes:
    """The frame's bytes. Raises ValueError if a field doesn't fit."""
    try:
        kind, payload = _payload(frame)
    except struct.error as error:
        raise ValueError(f"{type(frame).__name__} does not fit its frame") from error
    return _HEADER.pack(_MAGIC, VERSION, kind, len(payload)) + payload


def _payload(frame: Frame) -> tuple[int, bytes]:
    match frame:
        case Join():
            name = _text(frame.name, MAX_NAME_BYTES)
            return 1, _JOIN.pack(_exact(frame.secret), _exact(frame.key_hash)) + name
        case Joined():
            return 2, _SLOT.pack(frame.slot)
        case Hello():
            return 3, _HELLO.pack(frame.slot, _exact(frame.key), _exact(frame.instance, FLOW_ID_BYTES))
        case Open():
            return 4, _OPEN.pack(frame.slot, _exact(frame.key), frame.target, frame.port)
        case Accept():
            return 5, _HELLO.pack(frame.slot, _exact(frame.key), _exact(frame.flow, FLOW_ID_BYTES))
        case Peers():
            return 6, struct.pack(f"!{len(frame.slots)}H", *frame.slots)
        case Dial():
            return 7, _DIAL.pack(_exact(frame.flow, FLOW_ID_BYTES), frame.port)
        case Undialable():
            return 8, _FLOW.pack(_exact(frame.flow, FLOW_ID_BYTES))
        case Ping():
            return 9, _NUMBER.pack(frame.number)
        case Pong():
            return 10, _NUMBER.pack(frame.number)
        case Refused():
            return 11, _REASON.pack(frame.reason)
        case Fetch():
            return 12, _FETCH.pack(_exact(frame.secret), frame.offset) + _text(frame.name, MAX_FILE_NAME_BYTES)
        case Content():
            return 13, _SIZE.pack(frame.size)
        case Say():
            return 14, _exact(frame.secret) + _text(frame.text, MAX_TEXT_BYTES)
        case Heard():
            return 15, b""
        case Report():
            return 16, _text(frame.text, MAX_TEXT_BYTES)


def _text(value: str, most: int) -> bytes:
    encoded = value.encode()
    if len(encoded) > most:
        raise ValueError(f"a text of at most {most} bytes")
    return encoded


def _exact(value: bytes, size: int = SECRET_BYTES) -> bytes:
    # ``struct`` would pad or cut without a word.
    if len(value) != size:
        raise ValueError(f"expected {size} bytes")
    return value


def _join(payload: bytes) -> Frame:
    secret, key_hash = _JOIN.unpack_from(payload)
    name = payload[_JOIN.size :].decode()
    if not name.isprintable():
        raise ValueError
    return Join(secret, key_hash, name)


def _fetch(payload: bytes) -> Frame:
    secret, offset = _FETCH.unpack_from(payload)
    return Fetch(secret, offset, payload[_FETCH.size :].decode())


def _peers(payload: bytes) -> Frame:
    if len(payload) % 2:
        raise ValueError
    return Peers(struct.unpack(f"!{len(payload) // 2}H", payload))


#: By kind: least and greatest length of the payload in bytes, and how to read it.
_KINDS: Mapping[int, tuple[int, int, Callable[[bytes], Frame]]] = {
    1: (_JOIN.size, _JOIN.size + MAX_NAME_BYTES, _join),
    2: (_SLOT.size, _SLOT.size, lambda payload: Joined(*_SLOT.unpack(payload))),
    3: (_HELLO.size, _HELLO.size, lambda payload: Hello(*_HELLO.unpack(payload))),
    4: (_OPEN.size, _OPEN.size, lambda payload: Open(*_OPEN.unpack(payload))),
    5: (_HELLO.size, _HELLO.size, lambda payload: Accept(*_HELLO.unpack(payload))),
    6: (0, 2 * SLOTS, _peers),
    7: (_DIAL.size, _DIAL.size, lambda payload: Dial(*_DIAL.unpack(payload))),
    8: (_FLOW.size, _FLOW.size, lambda payload: Undialable(*_FLOW.unpack(payload))),
    9: (_NUMBER.size, _NUMBER.size, lambda payload: Ping(*_NUMBER.unpack(payload))),
    10: (_NUMBER.size, _NUMBER.size, lambda payload: Pong(*_NUMBER.unpack(payload))),
    11: (_REASON.size, _REASON.size, lambda payload: Refused(Reason(payload[0]))),
    12: (_FETCH.size, _FETCH.size + MAX_FILE_NAME_BYTES, _fetch),
    13: (_SIZE.size, _SIZE.size, lambda payload: Content(*_SIZE.unpack(payload))),
    14: (
        SECRET_BYTES,
        SECRET_BYTES + MAX_TEXT_BYTES,
        lambda payload: Say(payload[:SECRET_BYTES], payload[SECRET_BYTES:].decode()),
    ),
    15: (0, 0, lambda payload: Heard()),
    16: (0, MAX_TEXT_BYTES, lambda payload: Report(payload.decode())),
}


class FrameReader:
    """Takes bytes as they come and gives frames. Holds at most one unread chunk and one frame's beginning."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._held = self._held + data if self._held else data

    def next(self) -> Frame | None:
        """The next whole frame, None until more has arrived. Raises :class:`WireError`; then the reader is useless."""
        if not _MAGIC.startswith(self._held[:2]):
            raise WireError("not a mesh connection")
        if len(self._held) < _HEADER.size:
            return None
        _, version, kind, length = _HEADER.unpack_from(self._held)
        if version != VERSION:
            raise WireError(f"version {version} of the protocol, here {VERSION}")
        if kind not in _KINDS:
            raise WireError("unknown kind of frame")
        least, most, read = _KINDS[kind]
        if not least <= length <= most:
            raise WireError("frame of a wrong length")
        end = _HEADER.size + length
        if len(self._held) < end:
            return None
        payload, self._held = self._held[_HEADER.size : end], self._held[end:]
        try:
            return read(payload)
        except ValueError:
            # Not chained: the original quotes the bytes.
            raise WireError("frame with a wrong content") from None

    def unread(self) -> bytes:
        """What came after the last frame: the beginning of a stream. The reader is empty then."""
        held, self._held = self._held, b""
        return held
