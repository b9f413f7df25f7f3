"""The first frame of a finished mp4, as the viewer sees it."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media import poster
from deployments.media.mp4 import Mp4Encoder

RED, BLUE = (200, 40, 40), (20, 20, 220)


def film(path: Path, width: int = 64, height: int = 48) -> Path:
    """Red first, then blue."""
    frames = np.empty((3, height, width, 3), np.uint8)
    frames[0], frames[1:] = RED, BLUE
    with Mp4Encoder(path, width=width, height=height, fps=Fraction(24)) as encoder:
        encoder.write(frames)
    return path


def test_it_is_the_first_frame_in_full_size_and_its_own_colours(tmp_path: Path) -> None:
    target = tmp_path / "poster.webp"
    poster.make(film(tmp_path / "output.mp4"), target)
    with Image.open(target) as image:
        assert (image.format, image.size) == ("WEBP", (64, 48))
        assert getattr(image, "n_frames", 1) == 1
        seen = np.asarray(image.convert("RGB"), np.int16)
    # Both codecs round.
    assert abs(seen - np.array(RED)).max() <= 10


def test_what_has_no_frame_has_no_poster(tmp_path: Path) -> None:
    video = film(tmp_path / "output.mp4")
    video.write_bytes(video.read_bytes()[:100])
    with pytest.raises(Fault) as caught:
        poster.make(video, tmp_path / "poster.webp")
    assert caught.value.code is FailureCode.ENCODE_FAILED
    assert not (tmp_path / "poster.webp").exists()
