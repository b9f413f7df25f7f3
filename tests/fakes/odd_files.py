"""What phones, chats and strangers send: good files of unusual kinds, halves, liars and what is none. The same in every
run.
"""

import io
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import imageio_ffmpeg
import pillow_heif
from PIL import Image, ImageCms

pillow_heif.register_heif_opener()

SIZE = (64, 48)
_GOOD, _BAD, _OTHER = "ok", "invalid_media", "unsupported_media"
_LARGE, _LONG = "too_many_pixels", "media_too_long"

_PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=1")
_SOUND = ("-f", "lavfi", "-i", "sine=440:sample_rate=48000:duration=1")
_X264 = ("-map", "0:v", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
_THEORA = ("-map", "0:v", "-c:v", "libtheora")
_AAC = ("-map", "1:a", "-c:a", "aac", "-b:a", "32k")
#: What ffmpeg makes of a second of picture and sound.
_MADE: Mapping[str, Sequence[str]] = {
    "voice.opus": ("-map", "1:a", "-c:a", "libopus"),
    "voice.ogg": ("-map", "1:a", "-c:a", "libvorbis"),
    "flac.oga": ("-map", "1:a", "-c:a", "flac", "-f", "ogg"),
    "voice.flac": ("-map", "1:a", "-c:a", "flac"),
    "voice.aac": _AAC,
    "voice.m4a": _AAC,
    "book.m4a": (*_AAC, "-f", "ipod", "-brand", "M4B "),
    "memo.m4a": (*_AAC, "-f", "mp4", "-brand", "mp42"),
    "isom.mp4": (*_AAC, "-f", "mp4", "-brand", "isom"),
    "voice.3gp": (*_AAC, "-f", "3gp"),
    "voice.webm": ("-map", "1:a", "-c:a", "libopus", "-f", "webm"),
    "film.ogv": (*_THEORA, "-map", "1:a", "-c:a", "libvorbis"),
    "mute.ogv": _THEORA,
    "film.3gp": (*_X264, *_AAC, "-f", "3gp"),
    "mute.3gp": (*_X264, "-f", "3gp"),
}


@dataclass(frozen=True)
class OddFile:
    """One file, and what intake has to say of it."""

    #: Of the case; no other has it.
    name: str
    #: As which input it is given: ``image`` takes pictures, ``video`` also films, ``audio`` sound or a film's.
    input: Literal["image", "video", "audio"]
    path: Path
    #: ``ok``, or the code of the failure.
    verdict: str


def odd_files(folder: Path) -> Sequence[OddFile]:
    """Make all files in ``folder``."""
    made = _pictures() | _animations() | _films()
    cases = []
    for name, input, data, verdict in (*_images(made), *_videos(made), *_sounds(made)):
        path = folder / f"{input}-{name}"
        path.write_bytes(data)
        cases.append(OddFile(f"{input}-{name}", input, path, verdict))
    return cases


_Case = tuple[str, Literal["image", "video", "audio"], bytes, str]


def _images(made: Mapping[str, bytes]) -> Iterator[_Case]:
    def case(name: str, data: bytes, verdict: str) -> _Case:
        return (name, "image", data, verdict)

    yield from (case(name, made[name], _GOOD) for name in _pictures())
    yield from (case(name, made[name], _GOOD) for name in ("moving.gif", "moving.webp", "moving.avif", "moving.png"))
    yield from _halves(
        "image", made, "photo.heic", "photo.avif", "still.gif", "moving.gif", "moving.webp", "lossy.webp"
    )
    yield case("almost.heic", made["photo.heic"][:-3], _BAD)
    yield case("head-only.heic", made["photo.heic"][:40], _BAD)
    # Brands
    yield case("heix.heic", _branded(made["photo.heic"], b"heix"), _GOOD)
    yield case("mif1.heic", _branded(made["photo.heic"], b"mif1"), _GOOD)
    yield case("mif1.avif", _branded(made["photo.avif"], b"mif1"), _GOOD)
    yield case("film.heic", _branded(made["film.3gp"], b"heic"), _BAD)
    yield case("film.avif", _branded(made["film.3gp"], b"avif"), _BAD)
    yield case("avif-as.heic", _branded(made["photo.avif"], b"heic"), _BAD)
    yield case("raw.heic", _branded(made["photo.heic"], b"crx "), _OTHER)
    # Too large, by what they say
    yield case("huge.heic", _sized(made["photo.heic"], 30_000, 30_000), _LARGE)
    yield case("huge.avif", _sized(made["photo.avif"], 10_000, 10_000), _LARGE)
    yield case("huge.gif", made["still.gif"][:6] + b"\xff" * 4 + made["still.gif"][10:], _LARGE)
    # Names that mean nothing
    yield case("jpeg.heic", made["photo.jpg"], _GOOD)
    yield case("heic.jpg", made["photo.heic"], _GOOD)
    yield case("png.gif", made["grey16.png"], _GOOD)
    yield from _no_media("image", "heic", "avif", "gif")
    yield case("noise.heic", made["photo.heic"][:32] + bytes(range(256)) * 20, _BAD)
    yield case("noise.avif", made["photo.avif"][:32] + b"\xff" * 5000, _BAD)
    # Two at once
    yield case("script.gif", b"GIF89a/*\x01\x00\x01\x00*/=1;alert(1)//" + b" " * 200, _BAD)
    yield case("zip.gif", made["still.gif"] + b"PK\x03\x04" + bytes(300), _GOOD)
    yield case("zip.heic", made["photo.heic"] + b"PK\x03\x04" + bytes(300), _GOOD)
    yield case("sound.heic", made["voice.m4a"], _OTHER)
    yield case("voice.opus", made["voice.opus"], _OTHER)


def _videos(made: Mapping[str, bytes]) -> Iterator[_Case]:
    def case(name: str, data: bytes, verdict: str) -> _Case:
        return (name, "video", data, verdict)

    pictures = ("photo.heic", "turned.heic", "photo.avif", "still.gif", "lossless.webp", "profile.jpg")
    yield from (case(name, made[name], _GOOD) for name in pictures)
    films = ("moving.gif", "moving.webp", "uneven.gif", "hasty.gif", "ghost.gif", "ghost.webp", "film.3gp", "film.ogv")
    yield from (case(name, made[name], _GOOD) for name in films)
    yield case("patient.gif", made["patient.gif"], _LONG)
    yield case("wide.gif", made["wide.gif"], _LARGE)
    yield from (case(name, made[name], _OTHER) for name in ("moving.avif", "moving.png"))
    yield from _halves("video", made, "moving.gif", "moving.webp", "photo.heic", "film.ogv")
    yield case("gif.mp4", made["moving.gif"], _GOOD)
    yield case("heic.mov", made["photo.heic"], _GOOD)
    yield case("isom.mp4", made["isom.mp4"], _BAD)
    yield case("voice.opus", made["voice.opus"], _BAD)
    yield from _no_media("video", "gif")


def _sounds(made: Mapping[str, bytes]) -> Iterator[_Case]:
    def case(name: str, data: bytes, verdict: str) -> _Case:
        return (name, "audio", data, verdict)

    for name in _MADE:
        yield case(name, made[name], _BAD if name.startswith("mute.") else _GOOD)
    yield from _halves("audio", made, "voice.opus", "voice.ogg", "flac.oga", "voice.flac", "voice.aac", "voice.m4a")
    yield case("almost.opus", made["voice.opus"][:-3], _BAD)
    yield case("almost.aac", made["voice.aac"][:-3], _BAD)
    yield case("head-only.flac", made["voice.flac"][:42], _BAD)
    yield case("tagged.flac", _tagged(made["voice.flac"]), _GOOD)
    yield case("tagged.aac", _tagged(made["voice.aac"]), _GOOD)
    yield case("twice.opus", made["voice.opus"] * 2, _GOOD)
    yield case("zip.opus", made["voice.opus"] + b"PK\x03\x04" + bytes(300), _GOOD)
    yield case("opus.mp3", made["voice.opus"], _GOOD)
    yield case("aac.m4a", made["voice.aac"], _GOOD)
    yield case("flac.wav", made["voice.flac"], _GOOD)
    yield case("noise.ogg", b"OggS\0" + bytes(range(256)) * 20, _BAD)
    yield case("noise.flac", b"fLaC" + bytes(range(256)) * 20, _BAD)
    yield case("noise.aac", made["voice.aac"][:7] + b"\xaa" * 5000, _BAD)
    yield case("tagged-noise.aac", _tagged(b"\xaa" * 5000), _BAD)
    yield from (case(name, made[name], _OTHER) for name in ("photo.heic", "moving.gif", "moving.webp"))
    for name, head in _UNKNOWN.items():
        yield case(name, head + bytes(2000), _OTHER)
    yield from _no_media("audio", "opus", "flac", "aac")


#: How sound begins that is not taken.
_UNKNOWN = {
    "voice.amr": b"#!AMR\n",
    "voice.caf": b"caff\0\1\0\0",
    "voice.aiff": b"FORM\0\0\x08\0AIFF",
    "voice.wma": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "song.mid": b"MThd\0\0\0\6",
    "voice.loas": b"\x56\xe0\x5f\x20",
}


def _no_media(input: Literal["image", "video", "audio"], *extensions: str) -> Iterator[_Case]:
    for extension in extensions:
        yield f"empty.{extension}", input, b"", _BAD
        yield f"page.{extension}", input, b"<!DOCTYPE html><title>Log in</title>" + b" " * 500, _OTHER
        yield f"list.{extension}", input, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 20, _OTHER
        yield f"zeros.{extension}", input, bytes(5000), _OTHER


def _halves(input: Literal["image", "video", "audio"], made: Mapping[str, bytes], *names: str) -> Iterator[_Case]:
    for name in names:
        yield f"half-{name}", input, made[name][: len(made[name]) // 2], _BAD


def _films() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *_PICTURE, *_SOUND]
        for name, options in _MADE.items():
            command += [*options, "-fflags", "+bitexact", str(Path(folder) / name)]
        subprocess.run(command, check=True)
        return {name: (Path(folder) / name).read_bytes() for name in _MADE}


def pattern() -> Image.Image:
    """Red, green, blue and white quarters, so that each way of turning it looks different."""
    image = Image.new("RGB", SIZE, "white")
    width, height = SIZE[0] // 2, SIZE[1] // 2
    for colour, corner in (("red", (0, 0)), ("lime", (width, 0)), ("blue", (0, height))):
        image.paste(Image.new("RGB", (width, height), colour), corner)
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow makes of it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pictures() -> dict[str, bytes]:
    image = pattern()
    turned = Image.Exif()
    turned[0x0112] = 6
    ghost = image.copy()
    ghost.putalpha(Image.linear_gradient("L").resize(SIZE))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = struct.pack("<3H", 0xFFFF, 0x8000, 0) * (SIZE[0] * SIZE[1])
    burst = pillow_heif.from_pillow(image)
    burst.add_from_pillow(image.convert("L").convert("RGB"))
    several, ten_bit = io.BytesIO(), io.BytesIO()
    burst.save(several, primary_index=1)
    pillow_heif.from_bytes("RGB;16", SIZE, deep).save(ten_bit)
    return {
        "photo.heic": saved(image, "HEIF"),
        "turned.heic": saved(image, "HEIF", exif=turned),
        "ghost.heic": saved(ghost, "HEIF"),
        "burst.heic": several.getvalue(),
        "ten-bit.heic": ten_bit.getvalue(),
        "photo.avif": saved(image, "AVIF"),
        "turned.avif": saved(image, "AVIF", exif=turned),
        "still.gif": saved(image, "GIF"),
        "lossy.webp": saved(image, "WEBP"),
        "lossless.webp": saved(ghost, "WEBP", lossless=True),
        "photo.jpg": saved(image, "JPEG"),
        "profile.jpg": saved(image, "JPEG", icc_profile=profile),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "grey16.png": saved(Image.new("I;16", SIZE, 30_000), "PNG"),
        "ghost.png": saved(ghost.convert("LA"), "PNG"),
        "palette.png": saved(image.quantize(4), "PNG", transparency=0),
    }


def _animations() -> dict[str, bytes]:
    frames = [pattern().rotate(angle) for angle in (0, 30, 60)]
    ghosts = [frame.convert("RGBA") for frame in frames]
    for ghost in ghosts:
        ghost.putalpha(Image.linear_gradient("L").resize(SIZE).point(lambda level: 255 * (level > 128)))

    def moving(kind: str, duration: int | list[int], frames: list[Image.Image] = frames) -> bytes:
        return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=duration)

    regular = moving("GIF", 100)
    return {
        "moving.gif": regular,
        "moving.webp": moving("WEBP", 100),
        "moving.avif": moving("AVIF", 100),
        "moving.png": moving("PNG", 100),
        "uneven.gif": moving("GIF", [40, 2000, 40]),
        "hasty.gif": moving("GIF", 0),
        # The longest that a GIF can say: eleven minutes a frame.
        "patient.gif": moving("GIF", 655_350),
        "ghost.gif": moving("GIF", 100, ghosts),
        "ghost.webp": moving("WEBP", 100, ghosts),
        # A canvas far larger than what is painted on it.
        "wide.gif": regular[:6] + struct.pack("<HH", 5000, 4000) + regular[10:],
    }


def _branded(data: bytes, brand: bytes) -> bytes:
    return data[:8] + brand + data[12:]


def _sized(data: bytes, width: int, height: int) -> bytes:
    """HEIC or AVIF that says to be of this size."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def _tagged(data: bytes) -> bytes:
    """With an ID3 tag in front."""
    frame = b"TIT2" + (6).to_bytes(4, "big") + b"\0\0\0title"
    return b"ID3\3\0\0\0\0\0" + bytes([len(frame)]) + frame + data
