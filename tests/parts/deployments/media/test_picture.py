"""Images through the sandbox: small bombs, odd files, and pictures that are more than one."""

import io
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryFile

import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.faults import Fault
from deployments.media import parts, picture
from deployments.media.formats import AVIF, GIF, HEIC, JPEG, PNG, WEBP, Format
from deployments.media.picture import Picture
from deployments.sandbox.process import Limits, run
from tests.fakes.profiles import DISPLAY_P3

pillow_heif.register_heif_opener()


async def both(path: Path, format: Format) -> Picture:
    """What intake and a replica find."""
    judged = await picture.judge(path, format)
    decoded, pixels = picture.decode(path, format)
    assert decoded == judged
    assert len(pixels) == judged.width * judged.height * 3
    return judged


async def refusal(path: Path, format: Format) -> Fault:
    """What both refuse alike."""
    with pytest.raises(Fault) as judged:
        await picture.judge(path, format)
    with pytest.raises(Fault) as decoded:
        picture.decode(path, format)
    assert (judged.value.code, judged.value.message) == (decoded.value.code, decoded.value.message)
    assert judged.value.message[0].isupper()
    return judged.value


def progressive(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "teal").save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def with_scans(data: bytes, times: int) -> bytes:
    """The last scan of a progressive JPEG over and over: each costs a decoder a pass over all its blocks."""
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + b"\xff\xd9"


async def test_a_jpeg_of_many_scans_costs_nothing(tmp_path: Path) -> None:
    """Less than a megabyte that kept a decoder busy for 20 s."""
    path = tmp_path / "bomb.jpg"
    path.write_bytes(with_scans(progressive(4000), 3000))
    assert path.stat().st_size < 2**20
    refused = await refusal(path, JPEG)
    assert refused.code == "invalid_media"
    assert "parts" in refused.message
    with path.open("rb") as source:
        finished = run(picture._call("judge", JPEG, 50_000_000), picture._LIMITS, source, timeout_s=60)
    # Most of it is the program's own start.
    assert finished.cpu_s < 5
    # As many as a camera makes, and some.
    path.write_bytes(with_scans(progressive(), 50))
    assert (await both(path, JPEG)).width == 64


async def test_scans_cannot_hide(tmp_path: Path) -> None:
    """Behind fill bytes, restart markers, a second start of image, or other segments."""
    data = progressive()
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    for between in (
        b"\xff" * 7,
        b"\xff\xd0\xff\xd7",
        b"\xff\xd8",
        b"\xff\xe1\x00\x04ab",
        b"\xff\xfe\x00\x02",
        b"\xff\x01",
    ):
        (tmp_path / "a.jpg").write_bytes(data[:-2] + (between + scan) * 101 + b"\xff\xd9")
        assert parts.complaint((tmp_path / "a.jpg").open("rb"), "JPEG") == "parts", between
    # What looks like one inside a segment is none.
    inside = b"\xff\xe1" + (2 + 400).to_bytes(2, "big") + b"\xff\xda" * 200
    (tmp_path / "b.jpg").write_bytes(data[:2] + inside + data[2:])
    assert (await both(tmp_path / "b.jpg", JPEG)).width == 64
    # So is what comes after the image, e.g. the film of a "motion photo".
    (tmp_path / "c.jpg").write_bytes(data + b"\xff\xda\x00\x04ab" * 1000)
    assert (await both(tmp_path / "c.jpg", JPEG)).width == 64


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*extra: bytes, size: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(size * (3 * size + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + rows + chunk(b"IEND")


@pytest.mark.parametrize(
    "extra",
    [
        [chunk(b"tEXt", b"a\0b")] * 1_000_000,
        [chunk(b"IDAT")] * 1_000_000,
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 10_000,
        [chunk(b"fcTL", bytes(26)), chunk(b"fdAT", bytes(4))] * 10_000,
    ],
)
async def test_a_png_of_a_million_chunks(tmp_path: Path, extra: list[bytes]) -> None:
    (tmp_path / "a.png").write_bytes(png(*extra))
    assert (await refusal(tmp_path / "a.png", PNG)).code == "invalid_media"
    (tmp_path / "b.png").write_bytes(png(*[chunk(b"tEXt", b"a\0b")] * 100))
    assert (await both(tmp_path / "b.png", PNG)).width == 8


async def test_segments_and_frames_without_end(tmp_path: Path) -> None:
    data = progressive()
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe1\x00\x02" * 1_000_000 + data[2:])
    assert (await refusal(tmp_path / "a.jpg", JPEG)).code == "invalid_media"
    frames = b"".join(b"ANMF" + struct.pack("<I", 16) + bytes(16) for _ in range(10_000))
    body = (
        b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0\x07\0\0\x07\0\0" + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    )
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body + frames)) + body + frames)
    assert (await refusal(tmp_path / "a.webp", WEBP)).code == "invalid_media"


@given(
    start=st.sampled_from([b"", b"GIF89a\1\0\1\0", b"GIF89a\1\0\1\0\xf7\0\0", b"\0\0\0\x18ftypheic", b"RIFF"]),
    rest=st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"\x2c", b"\x21\xf9", b"\0\0\0\1mdat", b"meta"]))),
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF"]),
)
@settings(max_examples=300)
def test_any_bytes_are_walked_over(start: bytes, rest: list[bytes], format: str) -> None:
    with TemporaryFile() as file:
        file.write(start + b"".join(rest) + b"x")
        file.flush()
        assert parts.complaint(file, format) in (None, "cut", "parts")
        assert parts.boxes_are_cut(file) in (True, False)


async def test_a_gif_of_a_million_comments(tmp_path: Path) -> None:
    """Pillow puts them one behind the other, each time anew."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    data = buffer.getvalue()
    at = data.index(b"\x2c", 13 + 3 * 2)
    for times, unusable in ((1_000_000, True), (100, False)):
        (tmp_path / "a.gif").write_bytes(data[:at] + b"\x21\xfe\x01a\0" * times + data[at:])
        if unusable:
            assert "parts" in (await refusal(tmp_path / "a.gif", GIF)).message
        else:
            assert (await both(tmp_path / "a.gif", GIF)).width == 8


@pytest.mark.parametrize("format", [HEIC, AVIF])
async def test_boxes_without_end(tmp_path: Path, format: Format) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a", format.pillow)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data + b"\0\0\0\x08free" * 100_000)
    assert "parts" in (await refusal(tmp_path / "a", format)).message
    (tmp_path / "a").write_bytes(data + b"\0\0\0\x08free" * 100)
    assert (await both(tmp_path / "a", format)).width == 64
    # Up to the end of the file, a length in 64 bits, and what is no box any more.
    for more in (b"\0\0\0\0free" + bytes(99), b"\0\0\0\1free" + (24).to_bytes(8, "big") + bytes(8), b"\xff" * 500):
        (tmp_path / "a").write_bytes(data + more)
        assert (await both(tmp_path / "a", format)).width == 64


async def test_a_small_part_of_a_large_heic_is_large(tmp_path: Path) -> None:
    """What is shown of it is 64x48, what has to be decoded for that is more than anybody needs."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a", "HEIF")
    data = (tmp_path / "a").read_bytes()
    at = data.index(b"ispe") + 8
    (tmp_path / "a").write_bytes(data[:at] + struct.pack(">II", 8000, 6251) + data[at + 8 :])
    assert (await refusal(tmp_path / "a", HEIC)).code == "too_many_pixels"


@pytest.mark.parametrize("format", [PNG, WEBP, HEIC, AVIF, GIF])
async def test_part_of_a_file_says_so(tmp_path: Path, format: Format) -> None:
    Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "a", format.pillow)
    data = (tmp_path / "a").read_bytes()
    for part in (0.3, 0.6, 0.95):
        (tmp_path / "a").write_bytes(data[: int(len(data) * part)])
        assert "ends too early" in (await refusal(tmp_path / "a", format)).message


async def test_a_broken_profile_is_ignored(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    good = DISPLAY_P3.profile()
    grey = good.replace(b"mntrRGB ", b"mntrGRAY")
    for profile in (b"no profile", good[:200], good.replace(b"rTRC", b"xxxx"), grey, bytes(5000)):
        image.save(tmp_path / "a.png", icc_profile=profile)
        assert (await both(tmp_path / "a.png", PNG)).width == 16
        _, pixels = picture.decode(tmp_path / "a.png", PNG)
        assert tuple(pixels[:3]) == (10, 200, 30)


async def test_an_image_that_takes_too_long_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(cpu_s=1, memory=2**30, output=2**16)
    for name in ("_LIMITS", "_DECODE_LIMITS"):
        monkeypatch.setattr(picture, name, limits)
    # 99 scans of 16 megapixels take some seconds.
    (tmp_path / "a.jpg").write_bytes(with_scans(progressive(4000), 85))
    assert (await refusal(tmp_path / "a.jpg", JPEG)).code == "invalid_media"


@pytest.mark.parametrize(
    ("format", "moves"), [(PNG, True), (WEBP, True), (GIF, True), (AVIF, True), (JPEG, False), (HEIC, False)]
)
async def test_more_than_one_picture(tmp_path: Path, format: Format, moves: bool) -> None:
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / f"a.{format.extension}"
    # For JPEG that is MPO, as phones write it: the others are a depth map or the same scene once more.
    kind = "MPO" if format is JPEG else format.pillow
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    assert await both(path, format) == Picture(32, 16, moves)
    _, pixels = picture.decode(path, format)
    red, green, blue = pixels[:3]
    assert red > 200 > 60 > max(green, blue)


async def test_orientation_is_applied_alike(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in (JPEG, PNG, WEBP):
            Image.new("RGB", (64, 48)).save(tmp_path / "a", format.pillow, exif=exif)
            found = await both(tmp_path / "a", format)
            assert (found.width, found.height) == ((48, 64) if orientation > 4 else (64, 48))


async def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert (await refusal(tmp_path / "a", PNG)).code == "invalid_media"


def test_a_decoder_that_was_taken_over_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (
        b'{"width": 100000, "height": 100000, "animated": false}',
        b'{"width": -1, "height": -1, "animated": false}',
        b'{"width": 0, "height": 5, "animated": false}',
        b'{"width": "x"}',
        b"{",
        b"[1]",
        b"\xff",
    ):
        with pytest.raises(Fault) as caught:
            picture._picture(answer, 50_000_000)
        assert caught.value.code == "invalid_media"
