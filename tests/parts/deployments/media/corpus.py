"""Some hundred files that are not what they seem: polyglots, liars, damaged and spliced ones. The same in every run."""

import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pillow_heif
from PIL import Image

from tests.fakes.media import make

_VIDEO = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25")
_AUDIO = ("-f", "lavfi", "-i", "sine=440:sample_rate=16000")
_X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "5")
_AAC = ("-c:a", "aac", "-b:a", "32k")
#: Name and ffmpeg's arguments of each good file. One second; those called long, four.
_MADE: dict[str, tuple[str, ...]] = {
    "film.mp4": (*_VIDEO, *_AUDIO, *_X264, *_AAC, "-movflags", "faststart"),
    "late.mp4": (*_VIDEO, *_AUDIO, *_X264, *_AAC),
    "fragments.mp4": (*_VIDEO, *_AUDIO, *_X264, *_AAC, "-movflags", "frag_keyframe+empty_moov"),
    "silent.mov": (*_VIDEO, *_X264),
    "film.mov": (*_VIDEO, *_AUDIO, "-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "film.webm": (*_VIDEO, *_AUDIO, "-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus"),
    "film.mkv": (*_VIDEO, *_AUDIO, *_X264, "-c:a", "libmp3lame"),
    "live.mkv": (*_VIDEO, *_AUDIO, *_X264, "-c:a", "flac", "-live", "1"),
    "sound.m4a": (*_AUDIO, *_AAC),
    "sound.mkv": (*_AUDIO, "-c:a", "flac"),
    "sound.mp3": (*_AUDIO, "-b:a", "32k"),
    "bare.mp3": (*_AUDIO, "-b:a", "32k", "-id3v2_version", "0", "-write_xing", "0"),
    "sound.wav": _AUDIO,
    "float.wav": (*_AUDIO, "-c:a", "pcm_f32le", "-ac", "2"),
    "rf64.wav": (*_AUDIO, "-rf64", "always"),
    "mp3inside.wav": (*_AUDIO, "-c:a", "libmp3lame", "-b:a", "32k"),
    "sound.flac": (*_AUDIO, "-c:a", "flac"),
    "sound.ogg": (*_AUDIO, "-c:a", "libopus"),
    "vorbis.ogg": (*_AUDIO, "-c:a", "libvorbis"),
    "film.ogv": (*_VIDEO, *_AUDIO, "-c:v", "libtheora", "-c:a", "libvorbis"),
    "sound.aac": (*_AUDIO, *_AAC),
    # Not taken; their bytes appear inside the others.
    "film.avi": (*_VIDEO, "-c:v", "mjpeg"),
    "film.ts": (*_VIDEO, *_AUDIO, *_X264, *_AAC),
    "film.flv": (*_VIDEO, *_X264),
}
_LONG = (
    *("film.mp4", "film.mkv", "film.webm", "film.mov", "film.ogv"),
    *("sound.m4a", "sound.mp3", "sound.wav", "sound.flac", "sound.ogg", "sound.aac"),
)
_TAKEN = tuple(name for name in _MADE if name.split(".")[1] not in ("avi", "ts", "flv"))


def write(folder: Path) -> list[Path]:
    """Make all files in ``folder``. Those that a change left as they were, or like another, are not made twice."""
    good = _good(folder)
    written = []
    different: dict[bytes, str] = {}
    for name, data in _all(good):
        different.setdefault(data, name)
    for number, (data, name) in enumerate(different.items()):
        path = folder / f"{number:04d}-{name}"
        path.write_bytes(data)
        written.append(path)
    return written


def _good(folder: Path) -> dict[str, bytes]:
    files = {}
    for name, arguments in _MADE.items():
        files[name] = make(folder / name, *arguments, "-fflags", "+bitexact", seconds=1).read_bytes()
        if name in _LONG:
            files[f"long-{name}"] = make(folder / f"long-{name}", *arguments, seconds=4).read_bytes()
    pillow_heif.register_heif_opener()
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(buffer, kind)
        files[f"still.{kind.lower()}"] = buffer.getvalue()
    for kind in ("PNG", "WEBP", "GIF"):
        buffer = io.BytesIO()
        frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=40)
        files[f"moving.{kind.lower()}"] = buffer.getvalue()
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=[40, 5000, 40])
        files[f"long-moving.{kind.lower()}"] = buffer.getvalue()
    return files


def _all(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield from good.items()
    yield from _id3_polyglots(good)
    yield from _playlists(good)
    yield from _lying_boxes(good)
    yield from _lying_waves(good)
    yield from _lying_matroskas(good)
    yield from _lying_pages(good)
    yield from _lying_animations(good)
    yield from _swapped(good)
    yield from _chained(good)
    yield from _damaged(good)


def _id3(payload: bytes) -> bytes:
    """An ID3v2 tag with a private frame."""
    frame = b"PRIV" + len(payload).to_bytes(4, "big") + b"\0\0" + payload
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


def _flac_around(flac: bytes, hidden: bytes, kind: int) -> bytes:
    """A FLAC file that carries ``hidden`` in a block of metadata behind its first."""
    first = 4 + 4 + int.from_bytes(flac[5:8], "big")
    head = bytearray(flac[:first])
    head[4] &= 0x7F
    blocks = b"".join(
        bytes([kind]) + len(part).to_bytes(3, "big") + part
        for part in (hidden[at : at + 0xFF0000] for at in range(0, len(hidden), 0xFF0000))
    )
    rest = flac[first:]
    return bytes(head) + blocks + rest


def _id3_polyglots(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """What begins like an MP3 to some, and is something else to others."""
    for flac in ("sound.flac", "long-sound.flac"):
        for mp3 in ("bare.mp3", "sound.mp3"):
            for kind in (2, 4):
                hidden = (b"test" if kind == 2 else b"") + good[mp3]
                yield f"id3-{flac}-{kind}-{mp3}", _id3(b"x") + _flac_around(good[flac], hidden, kind)
    for name in (
        *_MADE,
        "still.jpeg",
        "still.png",
        "still.heif",
        "moving.gif",
        "still.webp",
        "long-sound.wav",
        "long-film.mp4",
    ):
        yield f"id3-{name}", _id3(b"x") + good[name]
        yield f"id3-in-{name}", _id3(good[name]) + good["bare.mp3"]


def _playlists(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    texts = {
        "mpd": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>\n',
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10000\n#EXTINF:10000,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\nduration 10000\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    }
    for name, text in texts.items():
        yield f"{name}.txt", text
        yield f"id3-{name}.mp3", _id3(b"x") + text + good["bare.mp3"]
        yield f"id3-{name}-inside.mp3", _id3(text) + good["bare.mp3"]
        for other in ("film.mp4", "sound.wav", "bare.mp3", "still.jpeg"):
            yield f"{name}-after-{other}", good[other] + text
            yield f"{name}-in-head-of-{other}", good[other][:12] + text + good[other][12:]


def _lying_boxes(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Durations, rates and tables of the MP4 family."""
    #: Box, and where behind its name a 32-bit number lies (version 0).
    fields = {
        "mvhd": (12, 16),
        "mdhd": (12, 16),
        "tkhd": (20,),
        "stts": (8, 12),
        "elst": (8, 12),
        "stsz": (4, 8),
        "ctts": (8, 12),
        "stsc": (12,),
    }
    for name in ("long-film.mp4", "long-sound.m4a", "film.mov"):
        for box, places in fields.items():
            for place in places:
                for value in (0, 1000, 0x7FFFFFFF):
                    changed = _with_field(good[name], box.encode(), place, value)
                    if changed != good[name]:
                        yield f"{box}-{place}-{value:x}-{name}", changed


def _with_field(data: bytes, box: bytes, place: int, value: int) -> bytes:
    """In the first box of that name, i.e. the picture's where there is one."""
    changed, at = bytearray(data), data.find(box)
    if at >= 0:
        changed[at + 4 + place : at + 8 + place] = struct.pack(">I", value)
    return bytes(changed)


def _lying_waves(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for name in ("long-sound.wav", "rf64.wav"):
        for place, length in ((4, 4), (24, 4), (28, 4), (32, 2), (34, 2), (20, 2), (22, 2)):
            for value in (0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF):
                changed = bytearray(good[name])
                changed[place : place + length] = (value & (256**length - 1)).to_bytes(length, "little")
                yield f"wav-{place}-{value:x}-{name}", bytes(changed)
        for value in (0, 1, 32000, 0x7FFFFFFF, 0xFFFFFFFF):
            at = good[name].index(b"data") + 4
            changed = bytearray(good[name])
            changed[at : at + 4] = value.to_bytes(4, "little")
            yield f"wav-data-{value:x}-{name}", bytes(changed)


def _lying_matroskas(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for name in ("film.webm", "sound.mkv", "long-film.mkv", "live.mkv"):
        data = good[name]
        if (at := data.find(b"\x44\x89\x88")) >= 0:
            for seconds in (0.0, 1.0, 1e3, 1e9, float("nan"), -1e6):
                yield f"duration-{seconds}-{name}", data[: at + 3] + struct.pack(">d", seconds) + data[at + 11 :]
        if (at := data.find(b"\x2a\xd7\xb1\x83")) >= 0:
            for scale in (1, 1000, 100_000, 10_000_000):
                yield f"scale-{scale}-{name}", data[: at + 4] + scale.to_bytes(3, "big") + data[at + 7 :]
        # Where each cluster is said to begin.
        for value in (0, 0x7F, 0xFFFF):
            changed, at = bytearray(data), data.find(b"\xe7\x82")
            while at >= 0:
                changed[at + 2 : at + 4] = value.to_bytes(2, "big")
                at = data.find(b"\xe7\x82", at + 2)
            yield f"clusters-{value:x}-{name}", bytes(changed)


def _lying_pages(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Ogg: where the last page is said to end, and which stream one belongs to. Its checksum is mended."""
    for name in ("sound.ogg", "vorbis.ogg", "long-sound.ogg", "film.ogv"):
        data = good[name]
        last, second = data.rindex(b"OggS"), data.index(b"OggS", 4)
        for value in (0, 1, 48_000 * 3600, 2**63 - 1, 2**64 - 1):
            yield f"granule-{value:x}-{name}", _with_page(data, last, 6, value.to_bytes(8, "little"))
        for at, flags in ((second, 2), (last, 0), (last, 2)):
            yield f"flags-{at}-{flags}-{name}", _with_page(data, at, 5, bytes([flags]))
        yield f"serial-{name}", _with_page(data, last, 14, b"else")
        yield f"order-{name}", data[:last] + data[second:last] + data[last:]


def _with_page(data: bytes, at: int, place: int, value: bytes) -> bytes:
    table = at + 27
    end = table + data[table - 1]
    end += sum(data[table:end])
    page = bytearray(data[at:end])
    page[place : place + len(value)] = value
    page[22:26] = bytes(4)
    check = 0
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1 ^ 0x04C11DB7 if check & 0x80000000 else check << 1) & 0xFFFFFFFF
    page[22:26] = check.to_bytes(4, "little")
    return data[:at] + bytes(page) + data[end:]


def _lying_animations(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Delays and sizes of GIF and WebP."""
    gif, webp = good["moving.gif"], good["moving.webp"]
    control, frame = gif.index(b"\x21\xf9"), webp.index(b"ANMF")
    for value in (0, 1, 500, 0xFFFF):
        yield f"delay-{value}.gif", gif[: control + 4] + value.to_bytes(2, "little") + gif[control + 6 :]
        yield f"delay-{value}.webp", webp[: frame + 20] + value.to_bytes(3, "little") + webp[frame + 23 :]
    for size in (1, 63, 1000, 4097, 0xFFFF):
        yield f"canvas-{size}.gif", gif[:6] + size.to_bytes(2, "little") * 2 + gif[10:]
        yield f"canvas-{size}.webp", webp[:24] + size.to_bytes(3, "little") * 2 + webp[30:]
    yield "no-end.gif", gif[:-1]
    yield "twice.gif", gif + gif
    yield "spliced.gif", gif[:-1] + good["still.gif"][13:]


def _swapped(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The first bytes of one over another."""
    heads = (
        "film.mp4",
        "sound.m4a",
        "film.mov",
        "film.webm",
        "sound.wav",
        "bare.mp3",
        "still.jpeg",
        "still.png",
        "still.webp",
    )
    for head in heads:
        for body in (*heads[::2], "sound.flac", "film.avi", "film.ts"):
            if head != body:
                length = 4 if head == "bare.mp3" else 12
                yield f"{head}-on-{body}", good[head][:length] + good[body][length:]


def _chained(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """One behind the other."""
    names = (
        "film.mp4",
        "film.mkv",
        "film.webm",
        "sound.wav",
        "bare.mp3",
        "sound.m4a",
        "still.jpeg",
        "still.png",
        "still.webp",
    )
    for first in names:
        for second in (*names[::2], "long-film.mp4", "long-sound.mp3"):
            yield f"{first}-then-{second}", good[first] + good[second]
    for name in ("bare.mp3", "film.mp4", "film.mkv", "sound.wav"):
        yield f"{name}-five-times", good[name] * 5


def _damaged(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    numbers = random.Random(7)
    ways: tuple[Callable[[bytes], bytes], ...] = (
        lambda data: _flipped(data, numbers, len(data), 3),
        lambda data: _flipped(data, numbers, min(len(data), 1500), 2),
        lambda data: data[: numbers.randrange(1, len(data))],
        lambda data: _without(data, numbers),
        lambda data: _with_zeros(data, numbers),
    )
    stills = ("still.jpeg", "still.png", "still.webp", "still.gif", "still.heif", "still.avif")
    for name in (*_TAKEN, *stills, "moving.png", "moving.webp", "moving.gif"):
        for number, way in enumerate(ways):
            yield f"damaged-{number}-{name}", way(good[name])


def _flipped(data: bytes, numbers: random.Random, before: int, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        changed[numbers.randrange(12, before)] = numbers.randrange(256)
    return bytes(changed)


def _without(data: bytes, numbers: random.Random) -> bytes:
    at = numbers.randrange(12, len(data))
    return data[:at] + data[at + numbers.randrange(1, 200) :]


def _with_zeros(data: bytes, numbers: random.Random) -> bytes:
    at, length = numbers.randrange(12, len(data)), numbers.randrange(1, 200)
    return data[:at] + bytes(length) + data[at + length :]
