"""The first frame: an untrusted image file made into RGB pixels of the clip's size, never stretched."""

from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from deployments.faults import Fault

#: Pillow reads many more formats, some of them by starting other programs.
_FORMATS = ("JPEG", "PNG", "WEBP")


def read(path: Path) -> Image.Image:
    """The image in ``path``, upright as its EXIF data says, RGB, transparency over black.

    Raises ``Fault('invalid_media')`` when it is damaged, far too large or no JPEG, PNG or WebP.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.verify()
        with Image.open(path, formats=_FORMATS) as image:
            return _rgb(ImageOps.exif_transpose(image))
    # Pillow's decoders raise SyntaxError for broken PNG chunks and ValueError for some nonsense in headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Fault("invalid_media", f"the image cannot be read: {_reason(error)}") from error


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey to white instead of scaling it.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary and was never meant to be seen.
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    # Pillow's own message ends with the path on this machine.
    return "not a JPEG, PNG or WebP image" if "cannot identify" in str(error) else str(error) or "damaged"
