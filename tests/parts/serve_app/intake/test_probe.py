"""Real files, good and bad, through the real decoders."""

import io
import struct
import time
import zlib
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from deployments.engine import InputSpec
from deployments.faults import Fault
from deployments.media.formats import wanted
from deployments.media.packets import Packets
from serve_app.intake import container
from serve_app.intake.probe import MediaProbe, probe, require
from tests.fakes.media import PICTURE, SOUND, cut, film, make, tone


async def refusal(path: Path) -> str:
    with pytest.raises(Fault) as caught:
        await probe(path)
    assert not caught.value.transient
    return caught.value.code


# Images


@pytest.mark.parametrize(
    ("name", "content_type"), [("a.jpg", "image/jpeg"), ("a.png", "image/png"), ("a.webp", "image/webp")]
)
async def test_images(tmp_path: Path, name: str, content_type: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (64, 48), "red").save(path)
    assert await probe(path) == MediaProbe(
        kind="image",
        content_type=content_type,
        extension=path.suffix[1:],
        size=path.stat().st_size,
        width=64,
        height=48,
    )


async def test_the_name_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.mp4", format="PNG")
    assert (await probe(tmp_path / "a.mp4")).content_type == "image/png"


async def test_images_are_measured_as_displayed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    turned = await probe(tmp_path / "a.jpg")
    assert (turned.width, turned.height) == (48, 64)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
async def test_half_an_image(tmp_path: Path, name: str) -> None:
    Image.effect_noise((200, 200), 50).convert("RGB").save(tmp_path / name)
    assert await refusal(cut(tmp_path / name, tmp_path / "half", 0.5)) == "invalid_media"


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check + struct.pack(">I", 4) + b"IDAT"


async def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    # One bit a pixel, 3750 bytes a row and its filter.
    rows = zlib.compress(bytes(3751 * 30_000), 1)
    body = png_header(30_000, 30_000)[:-8] + struct.pack(">I", len(rows)) + b"IDAT" + rows
    (tmp_path / "bomb.png").write_bytes(
        body + struct.pack(">I", zlib.crc32(b"IDAT" + rows)) + b"\0\0\0\0IEND\xaeB`\x82"
    )
    # A whole lossless WebP of 16383x16383.
    webp = "524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03"
    (tmp_path / "bomb.webp").write_bytes(bytes.fromhex(webp))
    (tmp_path / "header.png").write_bytes(png_header(30_000, 30_000))
    for name in ("bomb.png", "bomb.webp", "header.png"):
        assert await refusal(tmp_path / name) == "too_many_pixels"


async def test_the_pixel_cap_is_exact(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    assert (await probe(tmp_path / "a.png", max_image_pixels=10_000)).width == 100
    with pytest.raises(Fault) as caught:
        await probe(tmp_path / "a.png", max_image_pixels=9_999)
    assert caught.value.code == "too_many_pixels"


# Film and sound


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.mp4", "video/mp4"),
        ("a.mov", "video/quicktime"),
        ("a.webm", "video/webm"),
        ("a.mkv", "video/x-matroska"),
    ],
)
async def test_films(tmp_path: Path, name: str, content_type: str) -> None:
    path = film(tmp_path / name)
    found = await probe(path)
    assert (found.kind, found.content_type, found.extension) == ("video", content_type, path.suffix[1:])
    assert (found.width, found.height, found.fps, found.has_audio) == (320, 240, 25, True)
    assert found.size == path.stat().st_size
    assert found.duration_s == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.wav", "audio/wav"),
        ("a.mp3", "audio/mpeg"),
        ("a.m4a", "audio/mp4"),
        ("a.aac", "audio/aac"),
        ("a.ogg", "audio/ogg"),
        ("a.flac", "audio/flac"),
    ],
)
async def test_sounds(tmp_path: Path, name: str, content_type: str) -> None:
    path = tone(tmp_path / name)
    found = await probe(path)
    assert (found.kind, found.content_type, found.extension) == ("audio", content_type, path.suffix[1:])
    assert (found.width, found.height, found.fps, found.has_audio) == (None, None, None, True)
    assert found.duration_s == pytest.approx(2, abs=0.1)


async def test_what_is_inside_decides(tmp_path: Path) -> None:
    silent = await probe(make(tmp_path / "silent.mp4", *PICTURE))
    assert (silent.kind, silent.has_audio) == ("video", False)
    sound = await probe(make(tmp_path / "sound.mp4", *SOUND))
    assert (sound.kind, sound.content_type, sound.extension) == ("audio", "audio/mp4", "m4a")
    dressed = make(tmp_path / "film.m4a", *PICTURE, *SOUND, "-c:v", "libx264", "-f", "mp4", "-brand", "M4A ")
    assert (await probe(dressed)).content_type == "video/mp4"


async def test_a_cover_is_no_film(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "cover.jpg")
    tone(tmp_path / "a.mp3")
    inputs = ("-i", str(tmp_path / "a.mp3"), "-i", str(tmp_path / "cover.jpg"))
    path = make(tmp_path / "b.mp3", *inputs, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v", "attached_pic")
    assert (await probe(path)).kind == "audio"


async def test_films_are_measured_as_displayed(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4")
    path = make(tmp_path / "b.mp4", "-display_rotation", "90", "-i", str(tmp_path / "a.mp4"), "-c", "copy")
    turned = await probe(path)
    assert (turned.width, turned.height) == (240, 320)


async def test_a_recording_without_a_duration(tmp_path: Path) -> None:
    """What a browser's MediaRecorder and a pipe leave."""
    path = film(tmp_path / "a.webm")
    live = make(tmp_path / "live.webm", "-i", str(path), "-c", "copy", "-live", "1")
    assert (await probe(live)).duration_s == pytest.approx(2, abs=0.1)
    wav = bytearray(tone(tmp_path / "a.wav").read_bytes())
    wav[4:8] = b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(wav)
    assert (await probe(tmp_path / "piped.wav")).duration_s == pytest.approx(2, abs=0.1)


async def test_the_header_is_not_believed_about_the_duration(tmp_path: Path) -> None:
    data = bytearray(film(tmp_path / "a.mp4", seconds=4).read_bytes())
    # Movie header, version 0: four bytes duration after version, two times and the time scale.
    duration = data.index(b"mvhd") + 4 + 16
    data[duration : duration + 4] = struct.pack(">I", 1000)
    (tmp_path / "liar.mp4").write_bytes(data)
    assert (await probe(tmp_path / "liar.mp4")).duration_s == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.wav"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.8])
async def test_part_of_a_file(tmp_path: Path, name: str, fraction: float) -> None:
    path = film(tmp_path / name) if name != "a.wav" else tone(tmp_path / name)
    assert await refusal(cut(path, tmp_path / "part", fraction)) == "invalid_media"


async def test_a_good_header_over_noise(tmp_path: Path) -> None:
    data = film(tmp_path / "a.mp4").read_bytes()
    start = data.index(b"mdat") + 4
    (tmp_path / "noise.mp4").write_bytes(data[:start] + b"\xff" * (len(data) - start))
    assert await refusal(tmp_path / "noise.mp4") == "invalid_media"


async def test_too_many_pixels_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(container, "MAX_FRAME_PIXELS", 320 * 240 - 1)
    assert await refusal(path) == "too_many_pixels"


# Not media at all


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_media"),
        (b"<!doctype html><title>Log in</title>", "unsupported_media"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "unsupported_media"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "unsupported_media"),
        (b"\x89PNG\r\n\x1a\n" + b"junk" * 100, "invalid_media"),
        (b"\xff\xd8\xff\xe0" + b"junk" * 100, "invalid_media"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 100, "invalid_media"),
        (b"RIFF\x10\0\0\0WAVE" + b"junk" * 100, "invalid_media"),
        (b"\0\0\0\x14ftypisom\0\0\0\0isom" + b"junk" * 100, "invalid_media"),
        (b"\x1a\x45\xdf\xa3\x8b\x42\x82\x84webm" + b"junk" * 100, "invalid_media"),
        # Playlists under a mask: taken at their word, not followed.
        (b"ID3\n#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 20, "invalid_media"),
        (b"\0\0\0\x14ftypisom\0\0\0\0isom\n#EXTM3U\nfile:///etc/passwd\n", "invalid_media"),
    ],
)
async def test_junk(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "junk.mp4"
    path.write_bytes(data)
    assert await refusal(path) == code


# What a model takes

VIDEO = InputSpec(name="video", kinds=("video", "image"), description="", max_bytes=1, max_seconds=3)
SOUND_OR_FILM = InputSpec(name="audio", kinds=("audio", "video"), description="", max_bytes=1, max_seconds=3)


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "AVIF"), ("PNG", "PNG")])
async def test_a_moving_picture_that_cannot_be_a_video(tmp_path: Path, kind: str, name: str) -> None:
    """It would be filmed as the still image that its first frame is, which nobody meant."""
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green")]
    path = tmp_path / "a"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(Fault) as caught:
        await probe(path, VIDEO.kinds)
    assert caught.value.code == "unsupported_media"
    assert caught.value.message == (
        f"This is an animated {name}, of which only a still one is taken. Send {wanted(VIDEO.kinds)}."
    )
    # As the first picture of a film to be made it is as good as any.
    assert (await probe(path, ("image",))).width == 64


@pytest.mark.parametrize(("kind", "content_type"), [("GIF", "video/x-gif"), ("WEBP", "video/x-webp")])
async def test_an_animation_is_a_video_where_one_is_taken(tmp_path: Path, kind: str, content_type: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], duration=[40, 1000, 40])
    found = await probe(tmp_path / "a", VIDEO.kinds)
    assert (found.kind, found.content_type, found.width, found.height) == ("video", content_type, 64, 48)
    assert (found.duration_s, found.has_audio) == (pytest.approx(1.08), False)
    picture = await probe(tmp_path / "a", ("image",))
    assert (picture.kind, picture.content_type) == ("image", f"image/{kind.lower()}")
    frames[0].save(tmp_path / "b", kind)
    assert (await probe(tmp_path / "b", VIDEO.kinds)).kind == "image"


async def test_a_bomb_of_scans_costs_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000), "teal").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + scan * 3000 + b"\xff\xd9")
    began = time.perf_counter()
    assert await refusal(tmp_path / "a.jpg") == "invalid_media"
    # It took 20 s of computing; the bound is wide, for machines that are busy.
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("spec", "probed", "message"),
    [
        (
            VIDEO,
            MediaProbe(kind="audio", content_type="audio/mpeg", extension="mp3", size=1, duration_s=1),
            f"The file holds sound but no picture. Send {wanted(VIDEO.kinds)}.",
        ),
        (
            SOUND_OR_FILM,
            MediaProbe(kind="image", content_type="image/webp", extension="webp", size=1),
            f"This is an image (WebP). Send {wanted(SOUND_OR_FILM.kinds)}.",
        ),
        (
            SOUND_OR_FILM,
            MediaProbe(kind="video", content_type="video/mp4", extension="mp4", size=1, duration_s=1),
            f"The file holds no sound. Send {wanted(SOUND_OR_FILM.kinds)} with an audio track.",
        ),
        (
            VIDEO,
            MediaProbe(kind="video", content_type="video/mp4", extension="mp4", size=1, duration_s=3.2),
            "It is 3.2 s long; at most 3 s are allowed. Send a shorter clip.",
        ),
    ],
)
def test_what_is_wrong_and_what_to_send(spec: InputSpec, probed: MediaProbe, message: str) -> None:
    with pytest.raises(Fault) as caught:
        require(spec, probed)
    assert caught.value.message == message


# What ffmpeg prints

LOG = """Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:a.mp4':
  Metadata:
    title           : x
                    :   Stream #0:9: Video: h264, yuv420p, 9999x9999, 1000 fps
  Duration: 00:01:03.50, start: 0.000000, bitrate: 121 kb/s
  Stream #0:0[0x0]: Video: png, rgb24(pc), 100x100, 90k tbr, 90k tbn (attached pic)
  Stream #0:1[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv), 640x360 [SAR 1:1], {fps} (default)
  Stream #0:2[0x2](und): Audio: aac (LC) (mp4a / 0x6134706D), 44100 Hz, mono, fltp, 69 kb/s (default)
Stream mapping:
  Stream #0:0 -> #0:0 (copy)
Output #0, null, to 'pipe:':
  Stream #0:0(und): Video: h264, yuv420p, 8x8, 7 fps
"""
MINUTE = Packets(1500, Fraction(0), Fraction(60))


def test_a_report_is_read() -> None:
    assert container._promised(LOG) == 63.5
    assert container._frame_rate(LOG.format(fps="29.97 fps, 30 tbr"), MINUTE) == 29.97


def test_a_rate_that_nobody_states_is_counted() -> None:
    assert container._frame_rate(LOG.format(fps="90k tbr"), MINUTE) == 25
    assert container._frame_rate(LOG.format(fps="90k fps"), MINUTE) == 25


async def test_a_flood_of_frames_is_refused(tmp_path: Path) -> None:
    """Also beside sound of any length."""
    for sound in ((), (*SOUND, "-c:a", "aac")):
        picture = ("-f", "lavfi", "-i", "color=s=16x16:r=300:d=1")
        path = make(tmp_path / "a.mp4", *picture, *sound, "-c:v", "mpeg4", "-time_base", "1/300", seconds=20)
        with pytest.raises(Fault, match="240 frames") as caught:
            await probe(path)
        assert caught.value.code == "invalid_media"
