"""What runs in the sandbox on one image: descriptor 0 is the file, descriptor 1 takes the answer.

The only place where an untrusted image meets Pillow. Imports nothing of ours but its neighbour.
"""

import json
import os
from typing import Any, BinaryIO

# All that Pillow would import only when a file asks for it: in the sandbox there is nothing to import from.
from PIL import Image, ImageOps, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from deployments.media.parts import too_many

PLUGINS = (JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
Image.preinit()
#: Bytes of the answer in front of the pixels: JSON, then spaces.
HEAD_BYTES = 256
#: The formats in which more than one picture means that it moves; a JPEG's others are a camera's extras.
_MOVING = ("PNG", "WEBP")


class _Unusable(Exception):
    """Why, in one word."""


def judge(pillow_format: str, max_pixels: int) -> None:
    """Decode the image. Answers ``{"width", "height", "animated"}``, upright, or ``{"unusable": why}``."""
    _answer(_read, pillow_format, max_pixels)


def decode(pillow_format: str, max_pixels: int) -> None:
    """The same, and behind it the pixels: RGB, one byte each, row by row."""
    _answer(_read_pixels, pillow_format, max_pixels)


def _answer(read: Any, pillow_format: str, max_pixels: int) -> None:
    # We count ourselves, before any decoding. Pillow's own limit only raises at twice the number.
    Image.MAX_IMAGE_PIXELS = None
    pixels = b""
    try:
        with open(0, "rb", closefd=False) as file:
            facts, pixels = read(file, pillow_format, max_pixels)
    except _Unusable as why:
        facts = {"unusable": str(why)}
    except MemoryError:
        facts = {"unusable": "pixels"}
    # Malformed files raise nearly anything, e.g. struct.error, SyntaxError, ZeroDivisionError.
    except Exception:
        facts = {"unusable": "damaged"}
    _write(json.dumps(facts).encode().ljust(HEAD_BYTES))
    _write(pixels)


def _read(file: BinaryIO, pillow_format: str, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    with _opened(file, pillow_format, max_pixels) as image:
        return _facts(image, image.getexif().get(0x0112) in (5, 6, 7, 8)), b""


def _read_pixels(file: BinaryIO, pillow_format: str, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    with _opened(file, pillow_format, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _facts(image, turned=False), _rgb(image).tobytes()


def _opened(file: BinaryIO, pillow_format: str, max_pixels: int) -> Image.Image:
    if too_many(file, pillow_format):
        raise _Unusable("parts")
    # Pillow allocates a WebP's canvas when it opens one, so that size is read from the file.
    if pillow_format == "WEBP" and webp_pixels(file) > max_pixels:
        raise _Unusable("pixels")
    file.seek(0)
    image = Image.open(file, formats=(pillow_format,))
    if image.width * image.height > max_pixels:
        raise _Unusable("pixels")
    image.load()
    return image


def _facts(image: Image.Image, turned: bool) -> dict[str, Any]:
    width, height = reversed(image.size) if turned else image.size
    animated = image.format in _MOVING and getattr(image, "n_frames", 1) > 1
    return {"width": width, "height": height, "animated": animated}


def _rgb(image: Image.Image) -> Image.Image:
    """Transparency over black."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey to white instead of scaling it.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary and was never meant to be seen.
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")


def webp_pixels(file: BinaryIO) -> int:
    """Pixels of the canvas by the header of the first chunk: VP8X, VP8L (lossless) or VP8; 0 if it is none."""
    file.seek(0)
    head = file.read(30)
    chunk = head[12:16]
    if chunk == b"VP8X":
        return (int.from_bytes(head[24:27], "little") + 1) * (int.from_bytes(head[27:30], "little") + 1)
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8 ":
        return (int.from_bytes(head[26:28], "little") & 0x3FFF) * (int.from_bytes(head[28:30], "little") & 0x3FFF)
    return 0


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
