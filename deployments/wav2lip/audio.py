"""Sound to mel: decoded to 16 kHz, then the 80-band spectrogram that Wav2Lip was trained with.

Recipe: pre-emphasis 0.97; STFT of 800 samples every 200, periodic Hann window, centred, the ends padded by reflection
(as librosa 0.7 did; later ones pad with zeros); magnitude; 80 Slaney bands from 55 to 7600 Hz; 20 log10 - 20 dB; 100 dB
spread over -4..4. 80 columns a second. Works on blocks, so only the result grows with the length: 26 kB a second.
"""

from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deployments.faults import Fault
from deployments.wav2lip import ffmpeg
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
#: Sound longer than this is refused rather than decoded to the disk's end.
LONGEST_S = 4 * 3600.0
#: Keeps a track that starts late late. Used for the mel and for the output's sound, so that both have one time line.
FROM_ZERO = "aresample=async=1:first_pts=0"

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


def decode(path: Path, workdir: Path) -> Speech:
    """Decode the first sound track of ``path``, of any format, rate and layout. Raises ``Fault('invalid_media')``."""
    target = workdir / "speech.f32"
    command = ffmpeg.reading(path)
    command += ["-map", "0:a:0", "-vn", "-t", str(LONGEST_S), "-af", f"{FROM_ZERO},aresample={RATE}", "-ac", "1"]
    # The rate is set by the filter: as an option it would be applied before the filter that counts time.
    done = ffmpeg.run([*command, "-f", "f32le", "-y", str(target)], timeout_s=600)
    # Sound cut off or damaged at its end still plays in every player, so only a file without any is refused.
    if not target.exists() or target.stat().st_size < 4:
        raise ffmpeg.invalid("the audio cannot be decoded", done.stderr)
    speech = Speech(target)
    for start in range(0, speech.samples, RATE * 10):
        if not np.isfinite(speech.part(start, start + RATE * 10)).all():
            raise Fault("invalid_media", "the audio holds samples that are not numbers (NaN or infinite)")
    return speech


def frames_for(seconds: Fraction, fps: Fraction) -> int:
    """Video frames that cover ``seconds`` of sound: none of it is lost, but for a tenth of a frame at the end.

    That tenth keeps resampling's and codecs' odd sample from costing a frame: 5.000 s at 25 fps are 125 frames.
    """
    return max(1, ceil(seconds * fps - Fraction(1, 10)))


def mel_for(speech: Speech, frames: int, fps: Fraction) -> Mel:
    """Mel (80, T) with a full piece of sound for each of ``frames``; behind the end of the sound it is silent."""
    needed = (window_start(frames - 1, fps) + COLUMNS) * HOP
    return _mel(speech, max(needed, PIECE))


def mel_of(wave: Wave) -> Mel:
    """Mel (80, 1 + n // 200) of samples at 16 kHz, n >= 3200."""
    return _mel(_Held(wave), len(wave))


def window_start(frame: int, fps: Fraction) -> int:
    """First mel column of the piece of sound that belongs to ``frame``."""
    return int(frame * COLUMN_RATE / fps)


def chunk_starts(columns: int, fps: Fraction) -> list[int]:
    """Starts as the original makes them from a mel of ``columns``: the first to overrun is moved back and ends them.

    Its output is therefore about 0.15 s shorter than the sound. The pipeline pads instead (:func:`mel_for`); up to
    there the starts are the same. Kept as the definition to compare with.
    """
    starts: list[int] = []
    while (start := window_start(len(starts), fps)) + COLUMNS <= columns:
        starts.append(start)
    return [*starts, columns - COLUMNS]


class _Held(Speech):
    """Samples in memory."""

    def __init__(self, wave: Wave) -> None:
        self._wave = wave
        self.samples = len(wave)

    def part(self, start: int, stop: int) -> Wave:
        wave = self._wave[start:stop]
        return np.pad(wave, (0, stop - start - len(wave)))


def _mel(speech: Speech, samples: int) -> Mel:
    """Mel of the first ``samples``, block by block."""
    columns = 1 + samples // HOP
    mel = np.empty((BANDS, columns), np.float32)
    for first in range(0, columns, BLOCK):
        count = min(BLOCK, columns - first)
        # Reflection at both ends of the sound: -1 is sample 1, n is sample n - 2.
        index = np.abs(np.arange(first * HOP - WINDOW // 2, (first + count - 1) * HOP + WINDOW // 2))
        index = np.where(index >= samples, 2 * (samples - 1) - index, index)
        low = max(0, int(index.min()) - 1)
        wave = speech.part(low, int(index.max()) + 1).astype(np.float64)
        emphasised = wave - PRE_EMPHASIS * np.concatenate(([0.0], wave[:-1]))
        mel[:, first : first + count] = _spectrogram(torch.from_numpy(emphasised[index - low]))
    return mel


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
