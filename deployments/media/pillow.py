"""What runs in the sandbox on one image: descriptor 0 is the file, descriptor 1 takes the answer.

The only place where an untrusted image meets Pillow. Imports nothing of ours but its neighbour.
"""

import io
import json
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import pillow_heif

# All that Pillow would import only when a file asks for it: in the sandbox there is nothing to import from.
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from deployments.media.parts import complaint

PLUGINS = (
    *(AvifImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin),
    *(PngImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
Image.preinit()
# Threads cost address space, which is limited, by the number of processors; and a phone's picture has more in it than
# the one that is shown.
pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
#: Bytes of the answer in front of the pixels: JSON, then spaces.
HEAD_BYTES = 256
#: The formats in which more than one picture means that it moves; a JPEG's others are a camera's extras.
_MOVING = ("PNG", "WEBP", "GIF", "AVIF")
#: The property of HEIC and AVIF that says a picture's width and height.
_IMAGE_SIZE = re.compile(rb"ispe\0{4}(.{4})(.{4})", re.DOTALL)
_SRGB = ImageCms.createProfile("sRGB")
#: The colour space of a profile by Pillow's mode of the pixels that it is about.
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


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
    except Exception as error:
        facts = {"unusable": "cut" if "truncated" in str(error).lower() else "damaged"}
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
    if why := complaint(file, pillow_format):
        raise _Unusable(why)
    # Pillow allocates a WebP's canvas when it opens one, and HEIC may show a small part of a large picture: so sizes
    # are read from the file.
    if pillow_format in _SIZES and _SIZES[pillow_format](file) > max_pixels:
        raise _Unusable("pixels")
    file.seek(0)
    image = Image.open(file, formats=(pillow_format,))
    _require_pixels(image, max_pixels)
    image.load()
    # In HEIC a picture may turn out to be of another size than was said.
    _require_pixels(image, max_pixels)
    return image


def _require_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _Unusable("pixels")


def _facts(image: Image.Image, turned: bool) -> dict[str, Any]:
    width, height = reversed(image.size) if turned else image.size
    animated = image.format in _MOVING and getattr(image, "is_animated", False)
    return {"width": width, "height": height, "animated": animated}


def _rgb(image: Image.Image) -> Image.Image:
    """sRGB; transparency over black."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey to white instead of scaling it.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return _srgb(image, profile)
    # What lies under transparent pixels is arbitrary and was never meant to be seen.
    layer = image.convert("RGBA")
    colours = _srgb(image.convert("L") if image.mode in ("L", "LA") else layer.convert("RGB"), profile)
    return Image.composite(colours, Image.new("RGB", layer.size), layer.getchannel("A"))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """As sRGB what is in the colours of the ICC ``profile``. One that is broken or not about such pixels is ignored,
    as browsers do."""
    if image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    if not profile:
        return image.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = given.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if space != _SPACES[image.mode]:
            return image.convert("RGB")
        transform = ImageCms.ImageCmsTransform(
            *(given, ImageCms.ImageCmsProfile(_SRGB), image.mode, "RGB"),
            intent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return transform.apply(image)
    except (ImageCms.PyCMSError, OSError, ValueError):
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


def box_pixels(file: BinaryIO) -> int:
    """Pixels of the largest picture that HEIC or AVIF says to hold; tiles, previews and layers are some, too."""
    file.seek(0)
    sizes = _IMAGE_SIZE.findall(file.read())
    return max((int.from_bytes(width, "big") * int.from_bytes(height, "big") for width, height in sizes), default=0)


_SIZES: dict[str, Callable[[BinaryIO], int]] = {"WEBP": webp_pixels, "HEIF": box_pixels, "AVIF": box_pixels}


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
