"""Running ffmpeg on files that strangers sent: which formats and protocols it may use, and what its errors become."""

import re
import subprocess
from pathlib import Path

from deployments.faults import Fault
from deployments.media import ffmpeg_path

#: Demuxers of the media this model takes. Playlists (HLS, concat, DASH) are left out: they name other files. So are
#: AVI, MPEG and the like, whose time stamps are too incomplete to know a video's length without decoding it.
FORMATS = "mov,matroska,wav,w64,mp3,aac,flac,ogg,amr,aiff,caf,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,image2"
#: Pixels of the largest picture that ffmpeg may decode; 36 megapixels is a phone's or a camera's still.
LARGEST_PICTURE = 64_000_000


def reading(path: Path) -> list[str]:
    """Start of a command that reads ``path`` and nothing but local files."""
    return [
        *(ffmpeg_path(), "-v", "error", "-nostdin", "-max_pixels", str(LARGEST_PICTURE)),
        *("-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS, "-i", f"file:{path.resolve()}"),
    ]


def invalid(what: str, stderr: bytes) -> Fault:
    """The fault for an input that ffmpeg cannot read, with the first thing it said, which is nearest to the cause."""
    lines = [re.sub(r"^\[[^]]*\] *", "", line) for line in stderr.decode(errors="replace").splitlines()]
    reason = next(filter(None, lines), "no reason given")
    if "whitelist" in reason:
        reason = "this format is not supported"
    return Fault("invalid_media", f"{what}: {reason}")


def run(command: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with small output. A file that keeps ffmpeg busy for longer than ``timeout_s`` is a fault."""
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Fault("invalid_media", f"reading the file took longer than {timeout_s:.0f} s") from error
