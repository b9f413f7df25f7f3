"""Child program that judges one image: header first, then a full decode. Prints one JSON object.

Run as a file in the sandbox; needs Pillow, nothing of ours.

Usage: ``python -I picture.py PATH FORMAT MAX_PIXELS`` with FORMAT as Pillow calls it.
Prints ``{"width", "height"}`` as displayed (EXIF orientation applied), or ``{"error": "pixels" | "invalid"}``.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

_ORIENTATION = 0x0112
#: EXIF orientations that turn the picture by a quarter.
_TURNED = (5, 6, 7, 8)


def judge(path: Path, image_format: str, max_pixels: int) -> Mapping[str, int | str]:
    """What the image is, or what is wrong with it."""
    # We count ourselves, before any decoding; Pillow's own limit only raises at twice the number.
    Image.MAX_IMAGE_PIXELS = None
    try:
        # Pillow allocates a WebP's canvas when it opens one, so that size is read from the file.
        if image_format == "WEBP" and webp_pixels(path) > max_pixels:
            return {"error": "pixels"}
        with Image.open(path, formats=(image_format,)) as image:
            width, height = image.size
            if width * height > max_pixels:
                return {"error": "pixels"}
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            image.load()
    except MemoryError:
        return {"error": "pixels"}
    # Malformed files raise nearly anything, e.g. struct.error, SyntaxError, ZeroDivisionError.
    except Exception:
        return {"error": "invalid"}
    return {"width": height, "height": width} if turned else {"width": width, "height": height}


def webp_pixels(path: Path) -> int:
    """Pixels of the canvas by the header of the first chunk: VP8X, VP8L (lossless) or VP8; 0 if it is none."""
    with path.open("rb") as file:
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


if __name__ == "__main__":
    print(json.dumps(judge(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
