"""Small real media files, made by ffmpeg."""

import subprocess
from pathlib import Path

import imageio_ffmpeg

PICTURE = ("-f", "lavfi", "-i", "testsrc=size=320x240:rate=25")
SOUND = ("-f", "lavfi", "-i", "sine=440")


def make(path: Path, *arguments: str, seconds: float = 2) -> Path:
    """Run ffmpeg with these arguments and ``path`` as the output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments, "-t", str(seconds), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def film(path: Path, *, seconds: float = 2) -> Path:
    """320x240, 25 fps, with sound; the index in front, as the web wants it."""
    flags = ("-movflags", "faststart") if path.suffix in (".mp4", ".mov") else ()
    return make(path, *PICTURE, *SOUND, "-pix_fmt", "yuv420p", *flags, seconds=seconds)


def tone(path: Path, *, seconds: float = 2) -> Path:
    """A sine wave."""
    return make(path, *SOUND, seconds=seconds)


def cut(source: Path, path: Path, fraction: float) -> Path:
    """The first part of a file, as a broken transfer leaves it."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path
