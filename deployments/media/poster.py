"""The poster of a finished video: its first frame as WebP, decoded from the mp4 itself, since that is what is seen."""

from pathlib import Path

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media import ffmpeg
from deployments.media.formats import MP4
from deployments.sandbox.process import Limits, Program, run

CONTENT_TYPE = "image/webp"
#: Of a 4K frame about a second and half a gigabyte.
_LIMITS = Limits(cpu_s=30, memory=4 * 2**30, output=8 * 2**20)
_TIMEOUT_S = 60
#: libwebp's, of 100: a thumbnail's, and still good in full size.
_QUALITY = "80"


def make(video: Path, target: Path) -> None:
    """Write the first frame of the mp4 at ``video`` to ``target``. Raises ``Fault('encode_failed')``."""
    command = [*ffmpeg.reading(MP4, "-threads", "1"), "-map", "0:V:0", "-frames:v", "1"]
    command += ["-c:v", "libwebp", "-quality", _QUALITY, "-f", "webp", "pipe:1"]
    with video.open("rb") as source:
        finished = run(Program(command), _LIMITS, source, timeout_s=_TIMEOUT_S)
    ffmpeg.check(finished.stderr)
    if finished.status != 0 or not finished.stdout:
        said = finished.stderr.decode(errors="replace").strip().splitlines()
        raise Fault(FailureCode.ENCODE_FAILED, f"No poster: ffmpeg ended with {finished.status}: {said[-1:]}")
    target.write_bytes(finished.stdout)
