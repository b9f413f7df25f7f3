"""How videos are encoded: which encoder, and the tags by which players know the colours."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from structlog.testing import capture_logs

from deployments.media import codec
from deployments.media.mp4 import X264, Mp4Encoder, VideoCodec


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card whose encoder works."""
    monkeypatch.setattr(codec, "probe", lambda *, cuda: cuda)


@pytest.mark.parametrize(
    ("width", "height", "cuda", "on_card"),
    [(640, 480, True, True), (640, 480, False, False), (158, 480, True, False), (4096, 4098, True, False)],
)
@pytest.mark.usefixtures("card")
def test_the_card_encodes_what_it_can(width: int, height: int, cuda: bool, on_card: bool) -> None:
    chosen = codec.video_codec(width, height, cuda=cuda)
    assert chosen.on_card == on_card
    assert chosen.options == (*codec.COLOURS, *(codec.NVENC if on_card else X264).options)


def test_a_card_is_tried_once_and_what_was_found_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither this machine nor any other has this one.
    monkeypatch.setattr(codec, "NVENC", VideoCodec(("-c:v", "no_such_encoder"), on_card=True))
    codec.probe.cache_clear()
    with capture_logs() as logs:
        assert [codec.probe(cuda=True) for _ in range(2)] == [False, False]
        assert not codec.probe(cuda=False)
        assert "libx264" in codec.video_codec(640, 480, cuda=True).options
    codec.probe.cache_clear()
    (line,) = logs
    assert (line["event"], line["encoder"]) == ("video encoder probed", "libx264")
    assert "no_such_encoder" in str(line["reason"])


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24"])
def test_colours_come_back_as_they_were_and_are_tagged(tmp_path: Path, pixel_format: str) -> None:
    picture = np.zeros((4, 96, 128, 3), np.uint8)
    picture[:, :, :64], picture[:, :, 64:] = (200, 80, 40), (30, 160, 180)
    chosen = codec.video_codec(128, 96, cuda=False)
    path = tmp_path / "v.mp4"
    with Mp4Encoder(path, width=128, height=96, fps=Fraction(25), pixel_format=pixel_format, codec=chosen) as encoder:
        encoder.write(picture)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        # 1 is BT.709 in each, and the range is the limited one.
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (1, 1, 1, 1)
        shown = frame.to_ndarray(format=pixel_format)
    assert np.abs(shown[:, 4:60].astype(int) - (200, 80, 40)).max() <= 3
    assert np.abs(shown[:, 68:124].astype(int) - (30, 160, 180)).max() <= 3
