"""Streams: what is written is read, and nothing else is."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.mesh.pieces import DONE, END, MAX_PIECE, PIECE, PieceReader
from cluster.mesh.wire import WireError
from tests.unit.cluster.mesh.test_wire import cut


class Sink:
    """What a stream reader called back with."""

    def __init__(self) -> None:
        self.data = b""
        self.marks: list[str] = []
        self.reader = PieceReader(self.add, lambda: self.marks.append("end"), lambda: self.marks.append("done"))

    def add(self, piece: bytes | memoryview) -> None:
        assert "end" not in self.marks
        assert len(piece)
        self.data += piece


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.permutations(["end", "done"]),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_streams_survive_however_they_are_cut(pieces: list[bytes], marks: list[str], places: list[int]) -> None:
    data = b"".join(PIECE.pack(len(piece)) + piece for piece in pieces)
    data += b"".join(END if mark == "end" else DONE for mark in marks)
    sink = Sink()
    for chunk in cut(data, places):
        sink.reader.feed(chunk)
    assert (sink.data, sink.marks) == (b"".join(pieces), marks)


@given(st.binary(max_size=200), st.lists(st.integers(0, 999), max_size=5))
@example(END + PIECE.pack(1) + b"x", [])
@example(END + END, [])
@example(DONE + DONE, [2])
@example(PIECE.pack(MAX_PIECE + 1), [])
def test_any_stream_gives_data_or_a_wire_error(data: bytes, places: list[int]) -> None:
    sink = Sink()
    try:
        for chunk in cut(data, places):
            sink.reader.feed(chunk)
    except WireError:
        pass
    assert len(sink.data) <= max(0, len(data) - PIECE.size)
    assert sink.data in data or len(sink.data) > MAX_PIECE or _is_joined(sink.data, data)


def _is_joined(got: bytes, data: bytes) -> bool:
    """Pieces of ``data`` in order, prefixes left out."""
    position = 0
    for byte in got:
        position = data.find(bytes([byte]), position) + 1
        if position == 0:
            return False
    return True


@pytest.mark.parametrize("data", [END + PIECE.pack(1), END + END, DONE + DONE, PIECE.pack(MAX_PIECE + 1)])
def test_wrong_streams(data: bytes) -> None:
    with pytest.raises(WireError):
        Sink().reader.feed(data)
