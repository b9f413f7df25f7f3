"""The first frame: an image file made into RGB pixels of the clip's size, never stretched."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from deployments.media import picture
from deployments.media.formats import Format


def read(path: Path, format: Format) -> Image.Image:
    """The image in ``path``, upright as its EXIF data says, RGB, transparency over black.

    Raises ``Fault``: ``invalid_media`` or ``too_many_pixels``.
    """
    found, pixels = picture.decode(path, format)
    return Image.frombytes("RGB", (found.width, found.height), pixels)


def fit(image: Image.Image, width: int, height: int, mode: Literal["crop", "letterbox"]) -> Image.Image:
    """``image`` scaled alike in both directions to fill (``crop``) or lie within (``letterbox``) the size in pixels."""
    if mode == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    inner = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    frame = Image.new("RGB", (width, height))
    frame.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return frame


def widened(image: Image.Image, width: int, height: int) -> Image.Image:
    """``image`` in the middle of ``width`` x ``height`` pixels, which are at most twice as many along each side.

    What is added mirrors it: it is cut off again after the clip was made, and until then should look like the scene.
    """
    down, across = height - image.height, width - image.width
    if (down, across) == (0, 0):
        return image
    beside = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), beside, mode="reflect"))
