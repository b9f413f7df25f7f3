"""Sound without a length in its header: cut at any byte it says so, and whole it does not."""

from pathlib import Path

import pytest

from serve_app.intake.tail import adts_is_cut, ogg_is_cut
from tests.fakes.media import SOUND, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name, codec in (("opus.ogg", "libopus"), ("vorbis.ogg", "libvorbis"), ("sound.aac", "aac")):
        make(folder / name, *SOUND, "-c:a", codec, seconds=3)
    return folder


@pytest.mark.parametrize("name", ["opus.ogg", "vorbis.ogg"])
def test_ogg_ends_with_a_whole_page(folder: Path, tmp_path: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    path = tmp_path / "a"
    assert not ogg_is_cut(folder / name)
    for length in (*range(len(data) - 40, len(data)), *range(60, len(data), 997)):
        path.write_bytes(data[:length])
        whole = data[length : length + 4] == b"OggS"
        assert ogg_is_cut(path) == (not whole and length > 0), length
    # A recording that nobody ended, and what others write behind a file.
    path.write_bytes(data[: data.rindex(b"OggS")])
    assert not ogg_is_cut(path)
    path.write_bytes(data + bytes(1000))
    assert not ogg_is_cut(path)
    path.write_bytes(b"")
    assert not ogg_is_cut(path)


def test_adts_ends_with_a_whole_frame(folder: Path, tmp_path: Path) -> None:
    data = (folder / "sound.aac").read_bytes()
    path, at, ends = tmp_path / "a", 0, [0]
    while at < len(data):
        at += int.from_bytes(data[at + 3 : at + 6], "big") >> 5 & 0x1FFF
        ends.append(at)
    for length in (*range(len(data) - 300, len(data) + 1), *range(4000, len(data), 997)):
        path.write_bytes(data[:length])
        assert adts_is_cut(path) == (length not in ends), length
    # Tags at the end, and what is no ADTS at all.
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(100)):
        path.write_bytes(data + tail)
        assert not adts_is_cut(path)
    for nothing in (b"", b"\xff" * 300_000, bytes(100_000), b"\xff\xf1\x4c\x40\x00\x1f\xfc" * 30_000):
        path.write_bytes(nothing)
        assert not adts_is_cut(path)
