"""Frames: what is written is read, and nothing else is."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.mesh.plan import SLOTS
from cluster.mesh.wire import (
    Accept,
    Content,
    Dial,
    Fetch,
    Frame,
    FrameReader,
    Heard,
    Hello,
    Join,
    Joined,
    Open,
    Peers,
    Ping,
    Pong,
    Reason,
    Refused,
    Report,
    Say,
    Undialable,
    WireError,
    encode,
)

secrets = st.binary(min_size=32, max_size=32)
flows = st.binary(min_size=16, max_size=16)
shorts = st.integers(0, 65535)
sizes = st.integers(0, 2**64 - 1)
names = st.text(st.characters(categories=["L", "N"]), max_size=16)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Join, secrets, secrets, names),
    st.builds(Joined, shorts),
    st.builds(Hello, shorts, secrets, flows),
    st.builds(Open, shorts, secrets, shorts, shorts),
    st.builds(Accept, shorts, secrets, flows),
    st.builds(Peers, st.lists(shorts, max_size=SLOTS).map(tuple)),
    st.builds(Dial, flows, shorts),
    st.builds(Undialable, flows),
    st.builds(Ping, st.integers(0, 2**32 - 1)),
    st.builds(Pong, st.integers(0, 2**32 - 1)),
    st.builds(Refused, st.sampled_from(Reason)),
    st.builds(Fetch, secrets, sizes, st.text(max_size=60)),
    st.builds(Content, sizes),
    st.builds(Say, secrets, st.text(max_size=250)),
    st.just(Heard()),
    st.builds(Report, st.text(max_size=250)),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@given(st.lists(frames, max_size=5), st.binary(max_size=50), st.lists(st.integers(0, 10**6), max_size=6))
def test_frames_survive_however_they_are_cut(sent: list[Frame], rest: bytes, places: list[int]) -> None:
    reader, got = FrameReader(), []
    for chunk in cut(b"".join(map(encode, sent)), places):
        reader.feed(chunk)
        while (frame := reader.next()) is not None:
            got.append(frame)
    assert got == sent
    reader.feed(rest)
    assert (reader.unread(), reader.unread()) == (rest, b"")


@given(
    st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: b"vm\x01" + tail), st.lists(st.integers(0, 999))
)
@example(b"vm\x01\x01\x00\x40" + bytes(63) + b"\xff", [])
@example(b"vm\x01\x01\x00\x41" + bytes(64) + b"\xff", [])
@example(b"vm\x01\x0b\x00\x01\x63", [])
@example(b"vm\x01\x06\x00\x01\x00", [])
@example(b"vm\x01\x0c\x00\x29" + bytes(40) + b"\xff", [])
@example(b"vm\x01\x0e\x00\x21" + bytes(32) + b"\xff", [])
@example(b"vm\x01\x10\x00\x01\xff", [])
def test_any_bytes_give_frames_or_wire_errors(data: bytes, places: list[int]) -> None:
    reader, got, read = FrameReader(), [], 0
    for chunk in cut(data, places):
        reader.feed(chunk)
        try:
            while (frame := reader.next()) is not None:
                got.append(frame)
        except WireError:
            return
        read += len(chunk)
    # What was taken for frames is exactly those frames' bytes.
    written = b"".join(map(encode, got))
    assert data == written + reader.unread()


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"G",
            b"vG",
            b"vm\x02\x09\x00\x04",
            b"vm\x01\x00\x00\x00",
            b"vm\x01\x09\x00\x05",
            b"vm\x01\x01\xff\xff",
            b"\x00",
        ),
        *(b"vm\x01\x0c\x01\x28", b"vm\x01\x0e\x04\x21", b"vm\x01\x0f\x00\x01", b"vm\x01\x10\x04\x01"),
    ],
)
def test_wrong_headers_are_known_before_anything_is_awaited(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(WireError):
        reader.next()


@pytest.mark.parametrize(
    "frame",
    [
        Join(b"short", bytes(32), "x"),
        Join(bytes(32), bytes(32), "x" * 65),
        Hello(70000, bytes(32), bytes(16)),
        Hello(1, bytes(33), bytes(16)),
        Dial(bytes(15), 1),
        Ping(-1),
        Fetch(bytes(32), -1, "x"),
        Fetch(bytes(32), 0, "x" * 256),
        Say(bytes(31), "x"),
        Say(bytes(32), "é" * 513),
        Report("x" * 1025),
    ],
)
def test_fields_that_do_not_fit_are_not_written(frame: Frame) -> None:
    with pytest.raises(ValueError, match=r"bytes|fit"):
        encode(frame)


def test_secrets_do_not_show() -> None:
    secret = b"k" * 32
    for frame in (
        Join(secret, secret, "n"),
        Hello(2, secret, bytes(16)),
        Open(2, secret, 3, 4),
        Accept(2, secret, bytes(16)),
        Fetch(secret, 0, "n"),
        Say(secret, "text"),
    ):
        assert "kkk" not in repr(frame)
