"""How a video is encoded: on the card where it has an encoder, else by x264; always tagged as BT.709."""

from dataclasses import replace
from functools import cache

import structlog

from deployments.media.mp4 import X264, VideoCodec
from deployments.sandbox.process import run

log = structlog.get_logger()

#: RGB has to be told which YUV it becomes. Without the tags players guess by the size, and guess wrong.
#: Without accurate rounding every level comes out half a step too dark.
COLOURS = (
    "-vf",
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv",
)
#: Visually on a par with X264 (CRF 18).
NVENC = VideoCodec(("-c:v", "h264_nvenc", "-preset", "p4", "-rc", "vbr", "-cq", "19", "-b:v", "0"), on_card=True)
#: Sides that NVENC's H.264 takes.
NVENC_SIDES = range(160, 4097)


def video_codec(width: int, height: int, *, cuda: bool) -> VideoCodec:
    """How to encode a video of this size on a machine with or without CUDA."""
    codec = NVENC if width in NVENC_SIDES and height in NVENC_SIDES and probe(cuda=cuda) else X264
    return VideoCodec((*COLOURS, *codec.options), codec.on_card)


@cache
def probe(*, cuda: bool) -> bool:
    """Whether this machine's card encodes H.264. Only trying tells: A100 and H100 have no encoder.

    Takes up to some seconds the first time, so engines ask when they start. Logs what was found.
    """
    if not cuda:
        return False
    frames = ["-f", "lavfi", "-i", "nullsrc=s=256x256", "-frames:v", "2"]
    trial = NVENC.program([*frames, *NVENC.options, "-f", "null", "-"])
    finished = run(trial, replace(NVENC.limits, cpu_s=30, output=2**20), None, timeout_s=30)
    works = finished.status == 0
    said = finished.stderr.decode(errors="replace").strip().splitlines()
    log.info("video encoder probed", encoder="h264_nvenc" if works else "libx264", reason=None if works else said)
    return works
