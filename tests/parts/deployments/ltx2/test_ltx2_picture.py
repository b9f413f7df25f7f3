import io
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from deployments.faults import Fault
from deployments.ltx2 import picture
from deployments.media.formats import AVIF, GIF, HEIC, JPEG, PNG, WEBP, Format

pillow_heif.register_heif_opener()


def disc(width: int, height: int) -> Image.Image:
    """A white disc in the middle, two fifths as wide as the shorter side."""
    image = Image.new("RGB", (width, height))
    radius = min(width, height) / 5
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    ImageDraw.Draw(image).ellipse(box, fill="white")
    return image


def extent(image: Image.Image) -> tuple[float, float]:
    """Width and height of what is bright, to a fraction of a pixel."""
    grey = np.asarray(image.convert("L"), dtype=float) / 255
    return float(grey.sum(axis=1).max()), float(grey.sum(axis=0).max())


@given(
    width=st.integers(60, 900),
    height=st.integers(60, 900),
    size=st.sampled_from([(320, 192), (192, 320), (256, 256), (512, 288), (256, 512)]),
    mode=st.sampled_from(["crop", "letterbox"]),
)
@settings(max_examples=60)
def test_a_disc_stays_a_disc(
    width: int, height: int, size: tuple[int, int], mode: Literal["crop", "letterbox"]
) -> None:
    fitted = picture.fit(disc(width, height), *size, mode)
    across, down = extent(fitted)
    assert fitted.size == size
    scale = (max if mode == "crop" else min)(size[0] / width, size[1] / height)
    # Two pixels of the smaller of the two images: what rasterising the disc and rounding the size can cost.
    assert across == pytest.approx(down, abs=2 * max(1.0, scale))


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), mode=st.sampled_from(["crop", "letterbox"]))
@settings(max_examples=40)
def test_any_size_fits(width: int, height: int, mode: Literal["crop", "letterbox"]) -> None:
    assert picture.fit(Image.new("RGB", (width, height)), 64, 96, mode).size == (64, 96)


def test_crop_fills_and_letterbox_keeps_all() -> None:
    image = Image.new("RGB", (400, 100), "white")
    assert np.asarray(picture.fit(image, 64, 64, "crop")).min() == 255
    boxed = np.asarray(picture.fit(image, 64, 64, "letterbox"))
    assert (boxed[24:40] == 255).all()
    assert not boxed[:24].any()
    assert not boxed[40:].any()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert picture.read(tmp_path / "turned.jpg", JPEG).size == (20, 40)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (0, 0, 0)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("L", (8, 8), 100), (100, 100, 100)),
        (Image.new("I;16", (8, 8), 100 * 256), (100, 100, 100)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("RGB", (8, 8), "blue").quantize(4), (0, 0, 255)),
    ],
)
def test_every_pixel_format_becomes_rgb(image: Image.Image, colour: tuple[int, int, int], tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    found = picture.read(tmp_path / "image.png", PNG)
    assert (found.mode, found.getpixel((4, 4))) == ("RGB", colour)


def sample(path: Path, kind: str) -> bytes:
    path.write_bytes(_sample(kind))
    return path.read_bytes()


@cache
def _sample(kind: str) -> bytes:
    buffer = io.BytesIO()
    disc(200, 100).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("format", [JPEG, PNG, WEBP, HEIC, AVIF, GIF])
def test_a_cut_off_file_is_bad_media(format: Format, tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = sample(path, format.pillow)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Fault) as caught:
        picture.read(path, format)
    assert (caught.value.code, caught.value.transient) == ("invalid_media", False)


@pytest.mark.parametrize("kind", ["GIF", "EPS", "TIFF", "JPEG", "WEBP"])
def test_other_formats_are_not_even_tried(kind: str, tmp_path: Path) -> None:
    sample(tmp_path / "image", kind)
    with pytest.raises(Fault, match="can't be decoded") as caught:
        picture.read(tmp_path / "image", PNG)
    assert caught.value.code == "invalid_media"
    assert str(tmp_path) not in caught.value.message


@given(data=st.binary(max_size=200), format=st.sampled_from([JPEG, PNG, WEBP, HEIC, AVIF, GIF]), at=st.floats(0, 1))
@settings(max_examples=80)
def test_garbage_is_read_or_refused_but_never_an_accident(
    data: bytes, format: Format, at: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "image"
    whole = sample(path, format.pillow)
    position = int(at * len(whole))
    path.write_bytes(whole[:position] + data + whole[position + len(data) :])
    try:
        mode, code = picture.read(path, format).mode, "invalid_media"
    except Fault as fault:
        mode, code = "RGB", fault.code
    assert mode == "RGB"
    # Garbage in the header may well make it huge.
    assert code in ("invalid_media", "too_many_pixels")


@pytest.mark.parametrize(("width", "height"), [(128, 64), (96, 96), (128, 128)])
def test_a_widened_picture_has_the_narrow_one_in_its_middle_and_mirrors_it_around(width: int, height: int) -> None:
    narrow = disc(96, 64)
    wide = np.asarray(picture.widened(narrow, width, height))
    assert wide.shape == (height, width, 3)
    top, left = (height - 64) // 2, (width - 96) // 2
    assert np.array_equal(wide[top : top + 64, left : left + 96], np.asarray(narrow))
    # The edge itself is not repeated.
    for across in range(left):
        assert np.array_equal(wide[:, across], wide[:, 2 * left - across])
    for down in range(top):
        assert np.array_equal(wide[down], wide[2 * top - down])


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    image = disc(96, 64)
    assert picture.widened(image, 96, 64) is image
