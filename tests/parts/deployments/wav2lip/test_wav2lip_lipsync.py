"""The pipeline with cheap stand-ins for the networks: lengths, modes, policies, cancelling."""

import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.faults import Fault
from deployments.media.mp4 import Mp4Encoder
from deployments.wav2lip import lipsync, replay
from deployments.wav2lip.boxes import Found
from deployments.wav2lip.engine import Wav2LipEngine
from deployments.wav2lip.lipsync import crop
from deployments.wav2lip.pasting import CardPaste, paste, paste_each
from deployments.wav2lip.spec import Blend
from deployments.wav2lip.tracks import Detector
from deployments.wav2lip.video import Frame, read
from tests.fakes.sandboxed import left, running
from tests.parts.deployments.wav2lip.clips import (
    Everywhere,
    Facts,
    Nowhere,
    Plain,
    Scripted,
    facts,
    ffmpeg,
    film,
    greys,
    inputs,
    pattern,
    source,
    tone,
)

#: A face that covers nothing of the mean that :class:`Facts` measures would be too small; this is a sixteenth.
SMALL = {"face_box": [0, 12, 0, 16]}


def make(
    tmp_path: Path,
    video: Path,
    audio: Path,
    *,
    detector: Detector | None = None,
    generator: Plain | None = None,
    step: Callable[[str, float], None] = lambda stage, fraction: None,
    **params: Any,
) -> Facts:
    """Run the whole engine and decode what it made."""
    engine = Wav2LipEngine(generator or Plain(), {"centerface": detector or Everywhere()})
    with tempfile.TemporaryDirectory(dir=tmp_path) as room:
        prepared = engine.prepare(params, inputs(video, audio), Path(room))
        rendered = engine.publish(engine.run(prepared, step), Path(room))
        result = facts(rendered.path)
        assert [path.name for path in Path(room).iterdir()] == ["output.mp4"]
    media = rendered.media
    assert (media.frames, media.width, media.height) == (result.frames, *result.size)
    assert Fraction(media.fps) == result.fps
    assert media.has_audio
    # Picture and sound end together, to a millisecond.
    assert result.video_s == pytest.approx(float(result.frames / result.fps), abs=1e-3)
    assert result.audio_s == pytest.approx(float(result.video_s), abs=1e-3)
    return result


@pytest.mark.parametrize("fps", ["12", "24000/1001", "25", "30000/1001", "50"])
def test_the_output_is_as_long_as_the_sound(tmp_path: Path, fps: str) -> None:
    video = pattern(tmp_path / "v.mp4", 2, fps)
    made = make(tmp_path, video, tone(tmp_path / "a.wav", 1.2))
    assert made.fps == Fraction(fps)
    # All of the sound, and less than one frame of silence.
    assert 0 <= made.video_s - Fraction(6, 5) < 1 / made.fps


def test_five_seconds_are_125_frames(tmp_path: Path) -> None:
    assert make(tmp_path, pattern(tmp_path / "v.mp4", 6), tone(tmp_path / "a.mp3", 5, 44100, 2)).frames == 125


@pytest.mark.parametrize(("suffix", "rate", "channels"), [("wav", 8000, 1), ("m4a", 44100, 2), ("mp3", 48000, 2)])
def test_any_sound(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    made = make(tmp_path, pattern(tmp_path / "v.mp4", 2), tone(tmp_path / f"a.{suffix}", 1, rate, channels))
    assert made.frames == 25


def test_a_tenth_of_a_second(tmp_path: Path) -> None:
    assert make(tmp_path, pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 0.1)).frames == 3


def test_odd_rotated_and_variable_sources(tmp_path: Path) -> None:
    sound = tone(tmp_path / "a.wav", 1)
    odd = pattern(tmp_path / "odd.mkv", 2, size="85x47", options=("-c:v", "ffv1"))
    assert make(tmp_path, odd, sound).size == (84, 46)
    ffmpeg("-display_rotation", "90", "-i", pattern(tmp_path / "v.mp4", 2), "-c", "copy", tmp_path / "turned.mp4")
    assert make(tmp_path, tmp_path / "turned.mp4", sound).size == (48, 64)
    uneven = ("-vf", "select='not(eq(mod(n,3),1)*lt(n,30))'", "-fps_mode", "vfr")
    made = make(tmp_path, pattern(tmp_path / "vfr.mp4", 2, "30", options=uneven), sound)
    assert (made.frames, made.fps) == (25, 25)


def test_a_still_image_lasts_as_long_as_the_sound(tmp_path: Path) -> None:
    pattern(tmp_path / "p.png", 1, options=("-frames:v", "1"))
    assert make(tmp_path, tmp_path / "p.png", tone(tmp_path / "a.wav", 1)).frames == 25


LEVELS = [40, 80, 120, 160, 200]


@pytest.mark.parametrize("kept", [True, False], ids=["small", "large"])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cut", [40, 80, 120, 160, 200]),
        ("hold", [40, 80, 120, 160, 200, 200, 200, 200, 200, 200, 200, 200, 200]),
        ("loop", [40, 80, 120, 160, 200, 40, 80, 120, 160, 200, 40, 80, 120]),
        ("pingpong", [40, 80, 120, 160, 200, 160, 120, 80, 40, 80, 120, 160, 200]),
    ],
)
def test_a_video_shorter_than_the_sound(
    tmp_path: Path, mode: str, expected: list[int], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(replay, "KEPT", 0)
    video, sound = greys(tmp_path / "v.mp4", LEVELS), tone(tmp_path / "a.wav", 13 / 25)
    # Each frame tells its level to the detector and has its own face box, which has to come back with it.
    generator = Plain(level=0)
    boxes = {level: [[8 + n, 8, 40 + n, 40]] for n, level in enumerate(LEVELS)}
    detector = Scripted(boxes, every=1, loose=3)
    options = {"sync_mode": mode, "smoothing": False, "blend": "hard"}
    made = make(tmp_path, video, sound, generator=generator, detector=detector, **options)
    share = 1 - 32 * 40 / (48 * 64)
    recovered = [level / share for level in made.levels]
    assert recovered == pytest.approx(expected, abs=8)
    assert len(detector.seen) == 5
    assert len(generator.mels) == len(expected)


def test_a_longer_video_ends_with_the_sound(tmp_path: Path) -> None:
    for mode in ("cut", "loop", "pingpong", "hold"):
        made = make(tmp_path, pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 0.4), sync_mode=mode)
        assert made.frames == 10


def test_each_frame_gets_its_own_piece_of_sound(tmp_path: Path) -> None:
    ffmpeg(
        "-f", "lavfi", "-i", "aevalsrc=0.5*sin(2*PI*200*exp(t))*between(t\\,0.4\\,0.8):s=16000:d=2", tmp_path / "a.wav"
    )
    generator = Plain()
    make(tmp_path, pattern(tmp_path / "v.mp4", 3), tmp_path / "a.wav", generator=generator, **SMALL)
    loud = [float(mel.mean()) for mel in generator.mels]
    assert len(loud) == 50
    # A piece lasts from its frame to 0.2 s later.
    assert all(level == -4 for level in loud[:4] + loud[22:])
    assert all(level > -4 for level in loud[6:19])


def test_the_face_is_pasted_where_it_was(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    before, box = frame.copy(), (10, 40, 20, 60)
    face = np.full((96, 96, 3), 250, np.uint8)
    for blend in ("hard", "feather"):
        after = paste(frame, face, box, blend)  # type: ignore[arg-type]
        assert np.array_equal(frame, before)
        outside = np.ones((50, 70), bool)
        outside[10:40, 20:60] = False
        assert np.array_equal(after[outside], before[outside])
        assert (after[20:30, 30:50] == 250).all()
    assert (paste(frame, face, box, "hard")[10:40, 20:60] == 250).all()
    # At the edge a feather leaves nearly all of the old picture.
    feathered = paste(frame, face, box, "feather")
    assert np.abs(feathered[10, 30:50].astype(int) - before[10, 30:50]).mean() < 25
    assert crop(frame, box).shape == (96, 96, 3)


@pytest.mark.parametrize("blend", ["hard", "feather"])
def test_a_card_pastes_as_opencv_does(blend: Blend) -> None:
    """Boxes smaller and larger than the face, one at the frame's edge."""
    numbers = np.random.default_rng(0)
    frames = [numbers.integers(0, 256, (150, 220, 3), dtype=np.uint8) for _ in range(3)]
    before = [frame.copy() for frame in frames]
    faces = numbers.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    boxes = [(0, 150, 40, 220), (30, 71, 5, 60), (10, 106, 20, 116)]
    expected = paste_each(frames, faces, boxes, blend)
    made = CardPaste(torch.device("cpu"))(frames, faces, boxes, blend)
    assert np.array_equal(frames, before)
    for number, box in enumerate(boxes):
        outside = np.ones((150, 220), bool)
        outside[box[0] : box[1], box[2] : box[3]] = False
        assert np.array_equal(made[number][outside], before[number][outside])
        difference = np.abs(made[number].astype(int) - expected[number])
        assert difference.max() <= (1 if blend == "hard" else 2)
        assert (difference > 1).mean() < 1e-3


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[Frame]]:
    """The frames that each encoder was given, of those that were opened."""
    opened: list[list[Frame]] = []

    class Noted(Mp4Encoder):
        def __init__(self, *args: Any, **options: Any) -> None:
            opened.append([])
            super().__init__(*args, **options)

        def write(self, frames: Frame) -> None:
            opened[-1].extend(frames)
            super().write(frames)

    monkeypatch.setattr(lipsync, "Mp4Encoder", Noted)
    return opened


def test_a_picture_made_too_small_for_a_face_is_said_to_be(tmp_path: Path) -> None:
    video, sound = pattern(tmp_path / "v.mp4", 1, size="320x240"), tone(tmp_path / "a.wav", 0.2)
    for factor, hint in ((1, "Give face_box if there is one."), (4, "or a smaller resize_factor than 4.")):
        with pytest.raises(Fault, match=r"^Input 'video': No face was found\.") as caught:
            make(tmp_path, video, sound, detector=Nowhere(), resize_factor=factor)
        assert caught.value.message.endswith(hint)


@pytest.mark.parametrize("policy", ["passthrough", "hold", "error"])
def test_no_face_at_all(tmp_path: Path, policy: str, encoded: list[list[Frame]]) -> None:
    inputs = pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 2)
    steps: list[tuple[str, float]] = []
    options = {"on_missing_face": policy, "step": lambda *step: steps.append(step)}
    for wrong in ({"detector": Nowhere()}, {"face_index": 3}):
        steps.clear()
        generator = Plain()
        with pytest.raises(Fault, match="face_index 3" if "face_index" in wrong else "No face") as caught:
            make(tmp_path, *inputs, generator=generator, **options, **wrong)
        assert caught.value.code == "no_face_found"
        assert not caught.value.transient
        assert generator.mels == []
        # It ends with the detection: nothing was encoded in vain.
        assert encoded == []
        assert {stage for stage, _ in steps} == {"detecting"}
        assert len(steps) > 25
        assert [fraction for _, fraction in steps] == sorted(fraction for _, fraction in steps)
    make(tmp_path, *inputs, **options)
    assert len(encoded) == 1


class Fleeting(Scripted):
    """Also counts how many of the frames it was shown are still in memory."""

    def __init__(self, boxes: dict[int, list[list[float]]], **options: int) -> None:
        super().__init__(boxes, **options)
        self.most = 0
        self._shown: list[weakref.ref[Frame]] = []

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        self._shown += [weakref.ref(frame) for frame in frames]
        self.most = max(self.most, sum(frame() is not None for frame in self._shown))
        return super().__call__(frames)


@dataclass(frozen=True)
class Greys:
    """A film of 50 frames that differ in their level only, by level from dark to light, and how it is read."""

    path: Path
    levels: list[int]
    frames: list[Frame]


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Greys:
    levels = [20 + 4 * n for n in range(50)]
    path = greys(tmp_path_factory.mktemp("fifty") / "v.mp4", levels)
    return Greys(path, levels, list(read(source(path), 50)))


@pytest.mark.parametrize("first", [0, 1, 40])
@pytest.mark.parametrize("policy", ["passthrough", "hold"])
@pytest.mark.parametrize("mode", ["cut", "loop", "pingpong", "hold"])
def test_a_face_that_comes_late(
    tmp_path: Path, first: int, policy: str, mode: str, fifty: Greys, encoded: list[list[Frame]]
) -> None:
    """Shown from frame ``first`` to the 45th of 50. What was let go while looking for it comes back as it was."""
    sound = tone(tmp_path / "a.wav", 60 / 25)
    boxes = {level: [[8.0, 8.0, 40.0, 40.0]] for level in fifty.levels[first:45]}
    detector = Fleeting(boxes, every=1, loose=1)
    options = {"on_missing_face": policy, "sync_mode": mode, "blend": "hard", "pads": [0, 0, 0, 0]}
    made = make(tmp_path, fifty.path, sound, detector=detector, **options)
    frames = [frame.copy() for frame in fifty.frames]
    for number, frame in enumerate(frames):
        if first <= number < (50 if policy == "hold" else 45):
            frame[8:40, 8:40] = 255
    again = {"cut": [], "loop": frames[:10], "pingpong": frames[48:38:-1], "hold": frames[-1:] * 10}
    assert made.frames == len(encoded[0])
    assert np.array_equal(encoded[0], frames + again[mode])
    assert len(detector.seen) == 50
    if first == 40 and mode == "cut":
        # Not the whole clip was kept while looking for the face.
        assert detector.most < 20


def test_frames_without_a_face(tmp_path: Path) -> None:
    """Frames 8 to 14 of 20 lack one."""
    video, sound = greys(tmp_path / "v.mp4", [60 + 8 * n for n in range(20)]), tone(tmp_path / "a.wav", 0.8)
    boxes = {60 + 8 * n: [[0.0, 0.0, 64.0, 48.0]] for n in range(20) if not 8 <= n <= 14}
    policy = {"detector": Scripted(boxes, every=1, loose=3), "blend": "hard"}
    made = make(tmp_path, video, sound, **policy)
    assert [level > 240 for level in made.levels] == [not 8 <= n <= 14 for n in range(20)]
    assert made.levels[8:15] == pytest.approx([60 + 8 * n for n in range(8, 15)], abs=4)
    made = make(
        tmp_path, video, sound, detector=Scripted(boxes, every=1, loose=3), blend="hard", on_missing_face="hold"
    )
    assert all(level > 240 for level in made.levels)
    with pytest.raises(Fault) as caught:
        make(tmp_path, video, sound, **policy, on_missing_face="error")
    assert caught.value.code == "face_missing"
    assert "frame 8, at 0.32 s" in caught.value.message
    late = {60 + 8 * n: [[0.0, 0.0, 64.0, 48.0]] for n in range(10, 20)}
    with pytest.raises(Fault) as caught:
        make(tmp_path, video, sound, detector=Scripted(late, every=1, loose=3), on_missing_face="error")
    assert (caught.value.code, "frame 0" in caught.value.message) == ("face_missing", True)


def test_the_clients_box_needs_no_detector(tmp_path: Path) -> None:
    video, sound = greys(tmp_path / "v.mp4", [100] * 5), tone(tmp_path / "a.wav", 0.2)
    made = make(tmp_path, video, sound, detector=Nowhere(), face_box=[0, 24, 0, 64], blend="hard")
    assert made.levels == pytest.approx([(100 + 255) / 2] * 5, abs=4)
    # In pixels of the source picture whatever the output's size.
    made = make(tmp_path, video, sound, detector=Nowhere(), face_box=[0, 24, 0, 64], blend="hard", resize_factor=2)
    assert made.size == (32, 24)
    assert made.levels == pytest.approx([(100 + 255) / 2] * 5, abs=4)
    with pytest.raises(Fault) as caught:
        make(tmp_path, video, sound, face_box=[0, 24, 0, 80])
    assert caught.value.code == "face_box_outside"


def test_colours_survive(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = (40, 80, 200)
    picture[:, 32:] = (180, 160, 30)
    video, sound = film(tmp_path / "v.mp4", [picture] * 5), tone(tmp_path / "a.wav", 0.2)
    engine = Wav2LipEngine(Plain(), {"centerface": Everywhere()})
    prepared = engine.prepare({"face_box": [0, 8, 0, 8]}, inputs(video, sound), tmp_path)
    path = engine.publish(engine.run(prepared, lambda stage, fraction: None), tmp_path).path
    ffmpeg("-i", path, "-frames:v", "1", "-pix_fmt", "bgr24", "-f", "rawvideo", tmp_path / "out.raw")
    out = np.fromfile(tmp_path / "out.raw", np.uint8).reshape(48, 64, 3)
    assert np.abs(out[20:, 4:28].astype(int) - picture[20:, 4:28]).max() <= 6
    assert np.abs(out[20:, 36:60].astype(int) - picture[20:, 36:60]).max() <= 6


class Cancelled(Exception):
    """What the replica raises out of ``step``."""


@pytest.mark.parametrize("at", ["detecting", "lipsync"])
def test_cancelling_while_the_face_has_not_come(
    tmp_path: Path, at: str, fifty: Greys, encoded: list[list[Frame]]
) -> None:
    engine = Wav2LipEngine(Plain(), {"centerface": Scripted({216: [[8.0, 8.0, 40.0, 40.0]]}, loose=1)})
    sources = inputs(fifty.path, tone(tmp_path / "a.wav", 2))
    room = tmp_path / "job"
    room.mkdir()
    prepared = engine.prepare({}, sources, room)

    def step(stage: str, fraction: float) -> None:
        # In the search, and where the frames before the face are decoded for the second time.
        if stage == at and fraction > (0.01 if at == "detecting" else 0.3):
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(prepared, step)
    assert len(encoded) == (at == "lipsync")
    assert left() == []
    assert list(room.iterdir()) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("wav2lip")]


@pytest.mark.parametrize("when", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("mode", ["loop", "pingpong"])
def test_cancelling_leaves_nothing_behind(
    tmp_path: Path, when: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "KEPT", 0)
    # The system's folder for temporary files, too, so that what is left there would show.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("tmp", "job"):
        (tmp_path / name).mkdir()
    video, sound = pattern(tmp_path / "v.mp4", 1, size="320x240"), tone(tmp_path / "a.wav", 2)
    engine = Wav2LipEngine(Plain(), {"centerface": Everywhere()})
    prepared = engine.prepare({"sync_mode": mode}, inputs(video, sound), tmp_path / "job")

    busy: list[object] = []

    def step(stage: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        # On a busy machine one may have ended when the next has not begun yet.
        busy.extend(running())
        if fraction >= when:
            assert fraction == 0 or busy
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(prepared, step)
    assert left() == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "job").iterdir()) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("wav2lip")]
    # The engine is as good as new.
    assert make(tmp_path, video, tone(tmp_path / "b.wav", 0.2)).frames == 5


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    video, sound = pattern(tmp_path / "v.mp4", 3), tone(tmp_path / "a.wav", 2)
    make(tmp_path, video, sound, step=lambda *step: steps.append(step))
    stages, fractions = zip(*steps, strict=True)
    assert stages == ("detecting", *["lipsync"] * 5)
    assert list(fractions) == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


class Broken:
    """A generator that fails in the middle."""

    batch = 4

    def __call__(self, faces: np.ndarray, mels: np.ndarray) -> np.ndarray:
        raise RuntimeError("boom")


def test_a_defect_comes_through_and_cleans_up(tmp_path: Path) -> None:
    engine = Wav2LipEngine(Broken(), {"centerface": Everywhere()})
    sources = inputs(pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 1))
    prepared = engine.prepare({}, sources, tmp_path)
    with pytest.raises(RuntimeError, match="boom"):
        engine.run(prepared, lambda stage, fraction: None)
    assert left() == []
    assert not (tmp_path / "output.mp4").exists()


def test_an_encoder_that_fails_is_a_fault(tmp_path: Path) -> None:
    engine = Wav2LipEngine(Plain(), {"centerface": Everywhere()})
    room = tmp_path / "room"
    room.mkdir()
    sources = inputs(pattern(tmp_path / "v.mp4", 2), tone(tmp_path / "a.wav", 2))
    prepared = engine.prepare({}, sources, room)
    room.rmdir()
    with pytest.raises(Fault) as caught:
        engine.run(prepared, lambda stage, fraction: None)
    assert caught.value.code == "encode_failed"
    assert left() == []


def test_the_output_is_tagged_and_streams(tmp_path: Path) -> None:
    engine = Wav2LipEngine(Plain(), {"centerface": Everywhere()})
    sources = inputs(pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 1))
    prepared = engine.prepare({}, sources, tmp_path)
    content = engine.publish(engine.run(prepared, lambda stage, fraction: None), tmp_path).path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    # Primaries, transfer and matrix of BT.709.
    assert b"nclx\0\1\0\1\0\1" in content
