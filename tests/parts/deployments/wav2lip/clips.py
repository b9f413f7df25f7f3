"""Small clips and cheap stand-ins for the networks."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from deployments.engine import InputFile
from deployments.media.ffmpeg import program as ffmpeg_path
from deployments.media.formats import FORMATS
from deployments.wav2lip import video
from deployments.wav2lip.boxes import NONE_FOUND, Found
from deployments.wav2lip.spec import SPEC
from deployments.wav2lip.video import Frame, Source

GOLDEN = Path(__file__).parent / "golden" / "wav2lip_reference.npz"


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg."""
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", "-nostdin", *map(str, arguments)], check=True)


def input_file(path: Path, content_type: str = "video/mp4") -> InputFile:
    """An input whose name says what it is; ``content_type`` where it has none."""
    kinds = {f".{format.extension}": format.content_type for format in reversed(FORMATS)}
    return InputFile(path, kinds.get(path.suffix, content_type))


def inputs(footage: Path, sound: Path) -> dict[str, InputFile]:
    """Both inputs of Wav2Lip."""
    return {"video": input_file(footage), "audio": input_file(sound, "audio/wav")}


def source(path: Path, resize_factor: int = 1, content_type: str = "video/mp4") -> Source:
    """``path`` probed as the engine does it."""
    file, spec = input_file(path, content_type), SPEC.input("video")
    return video.probe(path, file.format(spec), spec, resize_factor)


def tone(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> Path:
    """A sine wave; ``path``'s suffix chooses the format."""
    path.write_bytes(_made(path.suffix, "-f", "lavfi", "-i", f"sine=f=300:r={rate}:d={seconds}", "-ac", str(channels)))
    return path


def pattern(path: Path, seconds: float, fps: str = "25", size: str = "64x48", options: Sequence[str] = ()) -> Path:
    """A moving test picture."""
    path.write_bytes(_made(path.suffix, "-f", "lavfi", "-i", f"testsrc2=s={size}:r={fps}:d={seconds}", *options))
    return path


@cache
def _made(suffix: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """What ffmpeg makes of ``arguments``: many tests want the same clip, and each start costs more than the clip."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"made{suffix}"
        subprocess.run([ffmpeg_path(), "-v", "error", *arguments, str(path)], input=stdin, check=True)
        return path.read_bytes()


def film(path: Path, frames: Sequence[Frame], fps: str = "25") -> Path:
    """These frames, lossless but for the colours' subsampling."""
    height, width = frames[0].shape[:2]
    arguments = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}", "-r", fps, "-i", "pipe:0"]
    arguments += ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-pix_fmt", "yuv420p"]
    arguments += ["-vf", "scale=flags=accurate_rnd"]
    path.write_bytes(_made(path.suffix, *arguments, stdin=b"".join(frame.tobytes() for frame in frames)))
    return path


def greys(path: Path, levels: Sequence[int], fps: str = "25", size: tuple[int, int] = (48, 64)) -> Path:
    """Plain grey frames, so that each can be recognised in the output."""
    return film(path, [np.full((*size, 3), level, np.uint8) for level in levels], fps)


def portrait() -> Frame:
    """The upper left of NASA's photograph of Eileen Collins (public domain, from scikit-image): one face, 320 x 240."""
    photograph = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    return cv2.resize(photograph[:330, 20:460], (320, 240), interpolation=cv2.INTER_AREA)


def faceless() -> Frame:
    """The lower right of the same photograph: a flag and a shuttle, no face."""
    photograph = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    return cv2.resize(photograph[270:510, 192:512], (320, 240))


def moving(picture: Frame, count: int, pixels: float = 2.0) -> list[Frame]:
    """``picture`` drifting to the right."""
    height, width = picture.shape[:2]
    shifts = [np.array([[1, 0, number * pixels], [0, 1, 0]], np.float32) for number in range(count)]
    return [cv2.warpAffine(picture, shift, (width, height), borderMode=cv2.BORDER_REFLECT) for shift in shifts]


@dataclass(frozen=True)
class Facts:
    """What a finished mp4 holds, by decoding it."""

    frames: int
    fps: Fraction
    video_s: Fraction
    audio_s: float
    size: tuple[int, int]
    #: Mean level of each frame.
    levels: list[float]


def facts(path: Path) -> Facts:
    """Decode ``path``."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(stream)]
        assert stream.average_rate is not None
        assert stream.duration is not None
        assert stream.time_base is not None
        rate, seconds = Fraction(stream.average_rate), stream.duration * Fraction(stream.time_base)
        size = (stream.width, stream.height)
    command = [ffmpeg_path(), "-v", "error", "-i", str(path), "-map", "0:a:0", "-ac", "1", "-ar", "48000"]
    raw = subprocess.run([*command, "-f", "s16le", "-"], check=True, capture_output=True).stdout
    levels = [float(frame.mean()) for frame in frames]
    return Facts(len(frames), rate, seconds, len(raw) / 2 / 48000, size, levels)


class Plain:
    """A generator that paints the face in one level and remembers what it was given."""

    batch = 16

    def __init__(self, level: int = 255) -> None:
        self._level = level
        self.mels: list[NDArray[np.float32]] = []

    def __call__(self, faces: Frame, mels: NDArray[np.float32]) -> Frame:
        assert faces.shape == (len(mels), 96, 96, 3)
        assert mels.shape[1:] == (80, 16)
        self.mels.extend(mels)
        return np.full_like(faces, self._level)


class Scripted:
    """A detector that goes by a frame's mean level, give or take ``loose``, and notes what it was shown."""

    def __init__(self, boxes: dict[int, list[list[float]]], every: int = 5, batch: int = 4, loose: int = 0) -> None:
        self.every = every
        self._loose = loose
        self.batch = batch
        self.seen: list[int] = []
        self._boxes = boxes

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        assert frames
        numbers = [round(float(frame.mean())) for frame in frames]
        self.seen += numbers
        found = [
            next((boxes for level, boxes in self._boxes.items() if abs(level - number) <= self._loose), [])
            for number in numbers
        ]
        return [np.array([[*box, 0.9] for box in boxes], np.float32) if boxes else NONE_FOUND for boxes in found]


class Everywhere:
    """A detector that sees one face in the middle of any frame."""

    every = 5
    batch = 4

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        height, width = frames[0].shape[:2]
        box = [width / 4, height / 4, 3 * width / 4, 3 * height / 4, 0.9]
        return [np.array([box], np.float32) for _ in frames]


class Nowhere:
    """A detector that sees none."""

    every = 5
    batch = 4

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        return [NONE_FOUND for _ in frames]
