"""The mel against the original's numbers, which librosa made, and sound in all shapes."""

import dataclasses
import os
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine import InputSpec
from deployments.faults import Fault
from deployments.wav2lip import audio
from deployments.wav2lip.network import COLUMNS
from deployments.wav2lip.spec import SPEC
from tests.fakes.sandboxed import left
from tests.parts.deployments.wav2lip.clips import GOLDEN, ffmpeg, input_file, pattern, tone


def decode(path: Path, workdir: Path) -> audio.Speech:
    """As the engine calls it, for a file whose name says what it is."""
    return decode_both(path, workdir)[0]


SOUND = SPEC.input("audio")


def decode_both(path: Path, workdir: Path, spec: InputSpec = SOUND) -> tuple[audio.Speech, audio.Track]:
    return audio.decode(path, input_file(path).format(spec), spec, workdir)


class Held(audio.Speech):
    """Samples in memory."""

    def __init__(self, wave: np.ndarray) -> None:
        self._wave = wave
        self.samples = len(wave)

    def part(self, start: int, stop: int) -> np.ndarray:
        wave = self._wave[start:stop]
        return np.pad(wave, (0, stop - start - len(wave)))


def mel_of(wave: np.ndarray) -> np.ndarray:
    return audio.mel(Held(wave), len(wave))


def chunk_starts(columns: int, fps: Fraction) -> list[int]:
    """Starts as the original makes them from a mel of ``columns``: the first to overrun is moved back and ends them.

    Its output is therefore about 0.15 s shorter than the sound. The pipeline pads instead (:func:`audio.mel_for`); up
    to there the starts are the same.
    """
    starts: list[int] = []
    while (start := audio.window_start(len(starts), fps)) + COLUMNS <= columns:
        starts.append(start)
    return [*starts, columns - COLUMNS]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def voice(golden: dict[str, np.ndarray]) -> np.ndarray:
    """The wave that the golden mel was computed from."""
    t = np.arange(int(16000 * float(golden["seconds"]))) / 16000
    x = 0.5 * np.sin(2 * np.pi * (150 + 200 * t) * t) + 0.2 * np.sin(2 * np.pi * 3000 * t) * np.sin(2 * np.pi * 3 * t)
    noise = 0.01 * np.random.default_rng(int(golden["salt"])).standard_normal(t.size)
    return (x * (0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * t)) + noise).astype(np.float32)


def test_golden_mel(golden: dict[str, np.ndarray], voice: np.ndarray) -> None:
    mel = mel_of(voice)
    assert mel.shape == golden["mel"].shape
    assert np.abs(mel - golden["mel"]).max() <= 1e-4


@pytest.mark.parametrize("block", [1, 7, 160])
def test_blocks_do_not_show(voice: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mel_of(voice)
    monkeypatch.setattr(audio, "BLOCK", block)
    assert np.array_equal(mel_of(voice), whole)


@pytest.mark.parametrize("fps", ["12", "23.976", "24", "25", "29.97", "30", "50", "60"])
def test_golden_chunk_starts(golden: dict[str, np.ndarray], fps: str) -> None:
    assert chunk_starts(golden["mel"].shape[1], Fraction(fps)) == golden[f"starts_{fps}"].tolist()


@given(
    frames=st.integers(1, 3000),
    fps=st.sampled_from([Fraction(12), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]),
)
def test_as_many_frames_as_the_sound_lasts(frames: int, fps: Fraction) -> None:
    exact = frames / fps
    assert audio.frames_for(exact, fps) == frames
    # A resampler's odd sample costs no frame, a tenth of a second always has one.
    assert audio.frames_for(exact + Fraction(1, 1000), fps) == frames
    assert audio.frames_for(exact + Fraction(1, 10), fps) > frames


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        *(("wav", 8000, 1), ("wav", 16000, 1), ("wav", 44100, 2), ("wav", 48000, 6)),
        *(("mp3", 8000, 1), ("mp3", 44100, 2), ("m4a", 44100, 2), ("m4a", 48000, 6)),
    ],
)
def test_any_format_has_its_true_length(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    speech = decode(tone(tmp_path / f"a.{suffix}", 1, rate, channels), tmp_path)
    assert speech.samples == 16000
    assert audio.frames_for(speech.seconds, Fraction(25)) == 25
    middle = speech.part(4000, 12000)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 150
    assert 0.05 < np.abs(middle).max() < 0.5


@pytest.mark.parametrize(
    ("suffix", "rate", "channels", "kept"),
    [
        *(("wav", 8000, 1, (8000, 1)), ("wav", 96_000, 6, (96_000, 6)), ("mp3", 44_100, 2, (44_100, 2))),
        *(("m4a", 48_000, 6, (48_000, 6)), ("mkv", 22_050, 2, (22_050, 2))),
        # More than an mp4 holds.
        *(("wav", 384_000, 1, (48_000, 1)), ("wav", 48_000, 16, (48_000, 2))),
    ],
)
def test_the_outputs_sound_has_the_inputs_rate_and_channels(
    tmp_path: Path, suffix: str, rate: int, channels: int, kept: tuple[int, int]
) -> None:
    speech, track = decode_both(tone(tmp_path / f"a.{suffix}", 1, rate, channels), tmp_path)
    assert (track.rate, track.channels) == kept
    with track.play() as sound:
        played = b""
        while part := os.read(sound.file, 2**20):  # type: ignore[arg-type]
            played += part
    assert len(played) / (4 * track.rate * track.channels) == pytest.approx(float(speech.seconds), abs=0.05)
    wave_form = np.frombuffer(played, "<f4").reshape(-1, track.channels)[: track.rate // 2].sum(axis=1)
    assert np.argmax(np.abs(np.fft.rfft(wave_form))) == 150
    assert left() == []


def test_sound_that_is_too_long_is_not_decoded_to_its_end(tmp_path: Path) -> None:
    """What intake said about it does not matter."""
    assert SOUND.max_seconds == 1200
    spec = dataclasses.replace(SOUND, max_seconds=20)
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono:d=120", tmp_path / "a.mp3")
    with pytest.raises(Fault, match="at most 20 s are allowed") as caught:
        decode_both(tmp_path / "a.mp3", tmp_path, spec)
    assert (caught.value.code, caught.value.transient) == ("media_too_long", False)
    assert (tmp_path / "speech.f32").stat().st_size < 30 * 16000 * 4


def test_the_sound_of_a_video_keeps_its_place(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 1)
    pattern(tmp_path / "v.mp4", 2)
    clip = tmp_path / "late.mkv"
    ffmpeg(
        "-i", tmp_path / "v.mp4", "-itsoffset", "0.5", "-i", tmp_path / "a.wav", "-c:v", "copy", "-c:a", "flac", clip
    )
    speech = decode(clip, tmp_path)
    assert speech.seconds == Fraction(3, 2)
    assert np.abs(speech.part(0, 7900)).max() < 1e-3
    assert np.abs(speech.part(8100, 24000)).max() > 0.05


def test_short_and_silent_sound(tmp_path: Path) -> None:
    speech = decode(tone(tmp_path / "a.wav", 0.1), tmp_path)
    frames = audio.frames_for(speech.seconds, Fraction(25))
    assert frames == 3
    mel = audio.mel_for(speech, frames, Fraction(25))
    assert mel.shape[0] == 80
    assert mel.shape[1] >= audio.window_start(2, Fraction(25)) + 16
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000:d=1", tmp_path / "silent.wav")
    silent = audio.mel_for(decode(tmp_path / "silent.wav", tmp_path), 25, Fraction(25))
    assert np.all(silent == -4)


def test_padding_changes_nothing_before_the_end(tmp_path: Path) -> None:
    speech = decode(tone(tmp_path / "a.wav", 2), tmp_path)
    padded, plain = audio.mel_for(speech, 50, Fraction(25)), mel_of(speech.part(0, speech.samples))
    assert np.array_equal(padded[:, : plain.shape[1] - 2], plain[:, :-2])


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    samples = np.zeros(16000, "<f4")
    samples[8000] = np.nan
    raw = tmp_path / "a.raw"
    raw.write_bytes(samples.tobytes())
    ffmpeg("-f", "f32le", "-ar", "16000", "-ac", "1", "-i", raw, "-c:a", "pcm_f32le", tmp_path / "a.wav")
    with pytest.raises(Fault, match="NaN") as caught:
        decode(tmp_path / "a.wav", tmp_path)
    assert caught.value.code == "invalid_media"


def test_what_is_no_sound(tmp_path: Path) -> None:
    files = {"empty.wav": b"", "text.mp3": b"hello " * 500, "list.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pattern(tmp_path / "mute.mp4", 1)
    with wave.open(str(tmp_path / "nothing.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
    tone(tmp_path / "whole.m4a", 1)
    (tmp_path / "cut.m4a").write_bytes((tmp_path / "whole.m4a").read_bytes()[:3000])
    for name in (*files, "mute.mp4", "nothing.wav", "cut.m4a"):
        with pytest.raises(Fault) as caught:
            decode(tmp_path / name, tmp_path)
        assert caught.value.code == "invalid_media"
        assert not caught.value.transient


def test_sound_cut_off_still_plays(tmp_path: Path) -> None:
    content = tone(tmp_path / "whole.wav", 1).read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert 7000 < decode(tmp_path / "cut.wav", tmp_path).samples < 9000
