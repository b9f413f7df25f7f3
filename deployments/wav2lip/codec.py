"""How the output is encoded: on the card where it has an encoder, else by x264; always tagged as BT.709."""

from functools import cache

from deployments.media.mp4 import X264, VideoCodec
from deployments.sandbox.process import Limits, run

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
    """How to encode a video of this size."""
    on_card = cuda and width in NVENC_SIDES and height in NVENC_SIDES and nvenc_works()
    codec = NVENC if on_card else X264
    return VideoCodec((*COLOURS, *codec.options), codec.on_card)


@cache
def nvenc_works() -> bool:
    """Whether this machine's card encodes H.264. Only trying tells: A100 and H100 have no encoder."""
    frames = ["-f", "lavfi", "-i", "nullsrc=s=256x256", "-frames:v", "2"]
    trial = NVENC.program([*frames, *NVENC.options, "-f", "null", "-"])
    return run(trial, Limits(cpu_s=30, memory=None, output=2**20), None, timeout_s=30).status == 0
