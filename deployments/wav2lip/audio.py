"""Sound to mel: decoded to 16 kHz, then the 80-band spectrogram that Wav2Lip was trained with.

Recipe: pre-emphasis 0.97; STFT of 800 samples every 200, periodic Hann window, centred, the ends padded by reflection
(as librosa 0.7 did; later ones pad with zeros); magnitude; 80 Slaney bands from 55 to 7600 Hz; 20 log10 - 20 dB; 100 dB
spread over -4..4. 80 columns a second. Works on blocks, so only the result grows with the length: 26 kB a second.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray

from deployments.engine import InputSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media import ffmpeg
from deployments.media.formats import Format
from deployments.media.mp4 import Sound
from deployments.sandbox.process import Program, Stream, start
from deployments.wav2lip.network import BANDS, COLUMNS

RATE = 16000
HOP, WINDOW = 200, 800
#: Mel columns a second.
COLUMN_RATE = RATE // HOP
PRE_EMPHASIS = 0.97
LOWEST_HZ, HIGHEST_HZ = 55.0, 7600.0
REFERENCE_DB, FLOOR_DB, LEVELS = 20.0, -100.0, 4.0
#: Samples in a piece of sound as the network sees it, 0.2 s; the least that has a mel.
PIECE = COLUMNS * HOP
#: Columns computed at a time: 5 s of sound, a few MB.
BLOCK = 400
#: Seconds decoded beyond what is allowed, to see that it is too long.
BEYOND_S = 5.0
#: Seconds that decoding may take.
DECODE_S = 600
#: Rates and numbers of channels that the output's encoder is given as they are.
RATES, MOST_CHANNELS, USUAL_RATE = range(1000, 192_001), 8, 48_000

Wave = NDArray[np.float32]
Mel = NDArray[np.float32]


class Speech:
    """The decoded sound of one input: 16 kHz mono float32 samples in a file of the job's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples = path.stat().st_size // 4

    @property
    def seconds(self) -> Fraction:
        """Length of the sound."""
        return Fraction(self.samples, RATE)

    def part(self, start: int, stop: int) -> Wave:
        """Samples ``start`` to ``stop``; what lies behind the end is silent."""
        count = max(0, min(stop, self.samples) - start)
        wave = np.fromfile(self._path, np.float32, count, offset=start * 4) if count else np.empty(0, np.float32)
        return np.pad(wave, (0, stop - start - len(wave)))


@dataclass(frozen=True)
class Track:
    """The first sound track of a file that was decoded once, to its end."""

    path: Path
    format: Format
    #: Samples a second, and channels, that the output's sound has.
    rate: int
    channels: int

    @contextmanager
    def play(self) -> Iterator[Sound]:
        """The track from its beginning, as raw sound on a pipe, on the same time line as the mel."""
        placed = f"{ffmpeg.FROM_ZERO},aresample={self.rate}"
        command = [*ffmpeg.reading(self.format), "-map", "0:a:0", "-vn", "-af", placed, "-ac", str(self.channels)]
        command += ["-f", "f32le", "pipe:1"]
        limits = replace(ffmpeg.DECODE, cpu_s=DECODE_S)
        with self.path.open("rb") as source, Stream(Program(command), limits, source) as stream:
            yield Sound(self.rate, self.channels, stream.pipe.fileno())
            # Killed by us where the sound is longer than the picture. A decoder that crashed left silence.
            status = stream.process.kill().status
            if status is not None and status < 0 and status != -signal.SIGKILL:
                raise Fault(FailureCode.ENCODE_FAILED, f"the decoder of the sound ended with {status}")


def decode(path: Path, format: Format, spec: InputSpec, workdir: Path) -> tuple[Speech, Track]:
    """Decode the first sound track of ``path``, of any rate and layout, into a file in ``workdir``.

    Raises ``Fault``: ``invalid_media``, or ``media_too_long`` by the limit of ``spec``.
    """
    target = workdir / "speech.f32"
    command = [*ffmpeg.reading(format), "-map", "0:a:0", "-vn"]
    room = None
    if spec.max_seconds is not None:
        command += ["-t", str(spec.max_seconds + BEYOND_S)]
        room = ceil((spec.max_seconds + 2 * BEYOND_S) * RATE * 4)
    # The rate is set by the filter: as an option it would be applied before the filter that counts time.
    command += ["-af", f"{ffmpeg.FROM_ZERO},aresample={RATE}", "-ac", "1", "-f", "f32le", "pipe:1"]
    # Only for its head, which says what the track is.
    command += ["-map", "0:a:0", "-vn", "-frames:a", "1", "-c:a", "pcm_s16le", "-f", "framecrc", "pipe:3"]
    limits = replace(ffmpeg.DECODE, cpu_s=DECODE_S, output=room)
    with path.open("rb") as source, target.open("wb") as out, TemporaryFile() as log, TemporaryFile() as head:
        with start(Program(command), limits, (source, out, log, head)) as process:
            status = process.wait(DECODE_S).status
        log.seek(0)
        head.seek(0)
        said, facts = log.read(64 * 1024), head.read(64 * 1024).decode(errors="replace")
    if status is None or status < 0:
        raise Fault(
            FailureCode.INVALID_MEDIA, "Its sound takes too long to decode. Export it as WAV and upload it again."
        )
    # Sound cut off or damaged at its end still plays in every player, so only a file without any is refused.
    if target.stat().st_size < 4:
        raise ffmpeg.invalid("Its sound cannot be decoded", said)
    speech = Speech(target)
    spec.require_length(float(speech.seconds))
    for begin in range(0, speech.samples, RATE * 10):
        if not np.isfinite(speech.part(begin, begin + RATE * 10)).all():
            raise Fault(FailureCode.INVALID_MEDIA, "Its sound holds samples that are not numbers (NaN or infinite).")
    return speech, Track(path, format, *_shape(facts))


def _shape(head: str) -> tuple[int, int]:
    """Rate and channels for the output's sound, by a list of 16-bit frames: usual ones where they are odd."""
    rate = re.search(r"^#sample_rate 0: (\d{1,9})$", head, re.MULTILINE)
    # stream, decoding time, presentation time, samples, bytes
    frame = re.search(r"^0, *-?\d+, *-?\d+, *(\d{1,9}), *(\d{1,9}),", head, re.MULTILINE)
    samples_a_second = int(rate[1]) if rate else 0
    channels = int(frame[2]) // (2 * int(frame[1])) if frame and int(frame[1]) else 0
    return (
        samples_a_second if samples_a_second in RATES else USUAL_RATE,
        channels if 1 <= channels <= MOST_CHANNELS else 2,
    )


def frames_for(seconds: Fraction, fps: Fraction) -> int:
    """Video frames that cover ``seconds`` of sound: none of it is lost, but for a tenth of a frame at the end.

    That tenth keeps resampling's and codecs' odd sample from costing a frame: 5.000 s at 25 fps are 125 frames.
    """
    return max(1, ceil(seconds * fps - Fraction(1, 10)))


def mel_for(speech: Speech, frames: int, fps: Fraction) -> Mel:
    """Mel (80, T) with a full piece of sound for each of ``frames``; behind the end of the sound it is silent."""
    needed = (window_start(frames - 1, fps) + COLUMNS) * HOP
    return mel(speech, max(needed, PIECE))


def window_start(frame: int, fps: Fraction) -> int:
    """First mel column of the piece of sound that belongs to ``frame``."""
    return int(frame * COLUMN_RATE / fps)


def mel(speech: Speech, samples: int) -> Mel:
    """Mel (80, 1 + n // 200) of the first n >= 3200 samples, block by block."""
    columns = 1 + samples // HOP
    made = np.empty((BANDS, columns), np.float32)
    for first in range(0, columns, BLOCK):
        count = min(BLOCK, columns - first)
        # Reflection at both ends of the sound: -1 is sample 1, n is sample n - 2.
        index = np.abs(np.arange(first * HOP - WINDOW // 2, (first + count - 1) * HOP + WINDOW // 2))
        index = np.where(index >= samples, 2 * (samples - 1) - index, index)
        low = max(0, int(index.min()) - 1)
        wave = speech.part(low, int(index.max()) + 1).astype(np.float64)
        emphasised = wave - PRE_EMPHASIS * np.concatenate(([0.0], wave[:-1]))
        made[:, first : first + count] = _spectrogram(torch.from_numpy(emphasised[index - low]))
    return made


def _spectrogram(wave: torch.Tensor) -> Mel:
    """(80, T) from float64 samples that are padded already."""
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
    spectrum = torch.stft(wave, WINDOW, HOP, WINDOW, window, center=False, return_complex=True).abs()
    bands = torch.from_numpy(_slaney_bands()) @ spectrum
    decibels = 20 * torch.log10(torch.clamp(bands, min=1e-5)) - REFERENCE_DB
    levels = torch.clamp(2 * LEVELS * (decibels - FLOOR_DB) / -FLOOR_DB - LEVELS, -LEVELS, LEVELS)
    mel: Mel = levels.to(torch.float32).numpy()
    return mel


@cache
def _slaney_bands() -> NDArray[np.float64]:
    """Triangles (80, 401) on Slaney's mel scale, each of area 2 / width (Slaney, Auditory Toolbox, 1998)."""
    edges = _hertz(np.linspace(_mels(LOWEST_HZ), _mels(HIGHEST_HZ), BANDS + 2))
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    areas = 2 / (edges[2:] - edges[:-2])
    triangles: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * areas[:, None]
    return triangles


#: Slaney's scale is linear (200/3 Hz a mel) up to 1000 Hz = 15 mel, then 27 mel are a factor of 6.4.
_LINEAR_HZ, _KNEE_HZ, _KNEE_MEL = 200 / 3, 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27


def _mels(hertz: float) -> float:
    if hertz < _KNEE_HZ:
        return hertz / _LINEAR_HZ
    return float(_KNEE_MEL + np.log(hertz / _KNEE_HZ) / _LOG_STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _KNEE_HZ * np.exp(_LOG_STEP * (mels - _KNEE_MEL))
    return np.where(mels < _KNEE_MEL, mels * _LINEAR_HZ, above)
