"""ffmpeg on strangers' files: how a command begins, and what its complaints become.

The file is descriptor 0 and its format is given, so ffmpeg opens nothing by name and guesses nothing. Playlists and
references to other files lead nowhere: the sandbox has no files, and the only protocols are descriptors.
"""

import re

import imageio_ffmpeg

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import MAX_FRAME_PIXELS, Format
from deployments.sandbox.connection import SandboxError
from deployments.sandbox.process import Limits

#: Reading to the end without decoding, or decoding one frame.
SCAN = Limits(cpu_s=30, memory=1024 * 2**20, output=32 * 2**20)
#: Decoding everything. The job's own time limit bounds it; memory grows with the processors: each holds frames.
DECODE = Limits(cpu_s=None, memory=8 * 2**30, output=2**20)
#: Encoding to a file, which the disk bounds.
ENCODE = Limits(cpu_s=None, memory=16 * 2**30, output=None)
#: Filter that puts sound where its time stamps say: gaps are filled, and a track that begins late stays late.
FROM_ZERO = "aresample=async=1:first_pts=0"
#: A file of more streams is read as if it had these.
_MAX_STREAMS = 16
#: Of a coded frame, which may be a row of blocks larger than what is shown of it.
_MAX_CODED_PIXELS = MAX_FRAME_PIXELS * 5 // 4


def program() -> str:
    """Path of the executable: the one that imageio-ffmpeg brings, so that every machine decodes and encodes alike."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def reading(format: Format, *options: str, level: str = "error") -> list[str]:
    """The start of a command that reads descriptor 0 as ``format`` and logs at ``level``.

    Raises ``Fault('unsupported_media')`` for an image.
    """
    if not format.demuxer:
        raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"This is a picture ({format.name}), which has no time.")
    return [
        *(program(), "-hide_banner", "-nostdin", "-nostats", "-v", level, *options),
        *("-protocol_whitelist", "fd,pipe", "-max_streams", str(_MAX_STREAMS), "-max_pixels", str(_MAX_CODED_PIXELS)),
        *("-f", format.demuxer, "-i", "fd:"),
    ]


def cut_off(log: bytes) -> bool:
    """Whether a pass that read a file to its end found less than there should have been."""
    return b"ended prematurely" in log or b"partial file" in log


def check(log: bytes) -> None:
    """Raise :class:`SandboxError` where the program itself is to blame."""
    if b"fd:: Protocol not found" in log:
        raise SandboxError(f"{program()} is too old: ffmpeg 6.0 or newer is needed")
    if b"error while loading shared libraries" in log:
        # Only the system's own folders can be read in the sandbox.
        raise SandboxError(f"{program()} does not start in the sandbox: {log.decode(errors='replace').strip()}")


def invalid(what: str, log: bytes) -> Fault:
    """The fault for an input that ffmpeg cannot read, with the first thing it said, which is nearest to the cause."""
    check(log)
    lines = [re.sub(r"^(\[[^]]*\] *)+", "", line) for line in log.decode(errors="replace").splitlines()]
    reason = next(filter(None, lines), "no reason given")
    return Fault(FailureCode.INVALID_MEDIA, f"{what} ({reason[:200]}). Export it as MP4 or WAV and upload it again.")
