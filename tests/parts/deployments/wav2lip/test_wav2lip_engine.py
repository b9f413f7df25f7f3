"""The engine with its real networks (random weights), its parameters, and inputs that are broken."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from deployments.faults import Fault
from deployments.media import poster
from deployments.media.ffmpeg import program as ffmpeg_path
from deployments.wav2lip import checkpoint
from deployments.wav2lip.engine import Wav2LipEngine
from deployments.wav2lip.spec import SPEC, Wav2LipParams
from deployments.weights import CheckpointError
from tests.fakes.sandboxed import left
from tests.parts.deployments.wav2lip.clips import (
    Nowhere,
    Plain,
    faceless,
    facts,
    film,
    inputs,
    moving,
    pattern,
    portrait,
    tone,
)


@pytest.fixture(scope="module")
def engine() -> Wav2LipEngine:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("WAV2LIP_MODEL_PATH", raising=False)
        environment.delenv("WAV2LIP_S3FD_PATH", raising=False)
        made = SPEC.load_engine()
    assert isinstance(made, Wav2LipEngine)
    return made


def test_a_face_speaks(engine: Wav2LipEngine, tmp_path: Path) -> None:
    assert engine.random_weights
    frames = moving(portrait(), 10) + [faceless()] * 4
    sources = inputs(film(tmp_path / "v.mp4", frames), tone(tmp_path / "a.wav", 14 / 25))
    prepared = engine.prepare({}, sources, tmp_path)
    rendered = engine.publish(engine.run(prepared, lambda stage, fraction: None), tmp_path)
    made = facts(rendered.path)
    assert made.frames == 14
    assert rendered.notes == {"frames_without_face": 4}
    poster.make(rendered.path, tmp_path / "poster.webp")
    with Image.open(tmp_path / "poster.webp") as first:
        assert first.size == (rendered.media.width, rendered.media.height)
    engine.free()


def test_only_the_face_changes(engine: Wav2LipEngine, tmp_path: Path) -> None:
    picture = portrait()
    sources = inputs(film(tmp_path / "v.mp4", [picture] * 2), tone(tmp_path / "a.wav", 0.08))
    prepared = engine.prepare({}, sources, tmp_path)
    path = engine.publish(engine.run(prepared, lambda stage, fraction: None), tmp_path).path
    command = ["-v", "error", "-i", str(path), "-frames:v", "1", "-pix_fmt", "bgr24", "-f", "rawvideo", "-"]
    raw = subprocess.run([ffmpeg_path(), *command], capture_output=True, check=True).stdout
    change = np.abs(np.frombuffer(raw, np.uint8).reshape(picture.shape).astype(int) - picture).mean(axis=2)
    face = np.zeros(change.shape, bool)
    face[30:165, 95:195] = True
    # Two encodings apart.
    assert change[~face].mean() < 6
    assert change[60:130, 115:175].mean() > 20


def test_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(checkpoint.random_weights(), tmp_path / "w.safetensors")
    monkeypatch.setenv("WAV2LIP_MODEL_PATH", str(tmp_path / "w.safetensors"))
    assert not Wav2LipEngine(detectors={}).random_weights
    monkeypatch.setenv("WAV2LIP_MODEL_PATH", str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="WAV2LIP_MODEL_PATH"):
        Wav2LipEngine(detectors={})


def test_the_original_detector_needs_weights(engine: Wav2LipEngine, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="WAV2LIP_S3FD_PATH") as caught:
        engine.prepare({"detector": "s3fd"}, {}, tmp_path)
    assert caught.value.code == "detector_unavailable"


def test_broken_inputs_leave_the_engine_usable(engine: Wav2LipEngine, tmp_path: Path) -> None:
    video, sound = pattern(tmp_path / "v.mp4", 1), tone(tmp_path / "a.wav", 0.1)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello " * 500)
    (tmp_path / "cut").write_bytes(video.read_bytes()[:2000])
    for name in ("empty", "text", "cut"):
        for wrong, sources in (("video", inputs(tmp_path / name, sound)), ("audio", inputs(video, tmp_path / name))):
            with pytest.raises(Fault, match=rf"^Input '{wrong}': [A-Z]") as caught:
                engine.prepare({}, sources, tmp_path)
            assert caught.value.code == "invalid_media"
    with pytest.raises(Fault):
        engine.prepare({}, inputs(sound, video), tmp_path)
    assert left() == []
    assert {path.name for path in tmp_path.iterdir()} == {"v.mp4", "a.wav", "empty", "text", "cut"}
    prepared = engine.prepare({"face_box": [0, 40, 0, 40]}, inputs(video, sound), tmp_path)
    assert engine.run(prepared, lambda stage, fraction: None).tally.frames == 3


def test_a_video_damaged_in_the_middle_is_shown_as_players_show_it(tmp_path: Path) -> None:
    engine = Wav2LipEngine(Plain(), {"centerface": Nowhere()})
    video = pattern(tmp_path / "v.mp4", 1, options=("-movflags", "+faststart"))
    content = bytearray(video.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 60] = bytes(60)
    video.write_bytes(content)
    sources = inputs(video, tone(tmp_path / "a.wav", 1))
    prepared = engine.prepare({"face_box": [0, 40, 0, 40]}, sources, tmp_path)
    assert engine.run(prepared, lambda stage, fraction: None).tally.frames == 25


def test_parameters() -> None:
    assert Wav2LipParams().pads == (0, 10, 0, 0)
    parsed = Wav2LipParams.model_validate_json('{"pads": [1, 2, 3, 4], "face_box": [0, 100, 0, 80]}')
    assert parsed.face_box is not None
    assert (parsed.pads.bottom, parsed.face_box.right) == (2, 80)
    for wrong in (
        *({"pads": [0, 10, 0]}, {"pads": [0, -1, 0, 0]}, {"face_box": [50, 20, 0, 80]}, {"face_index": -1}),
        *({"resize_factor": 0}, {"resize_factor": 9}, {"sync_mode": "bounce"}, {"blend": "soft"}, {"unknown": 1}),
        {"face_box": [0, 100, 0, 80], "face_index": 0},
    ):
        with pytest.raises(ValidationError):
            Wav2LipParams.model_validate(wrong)


def test_every_field_is_described() -> None:
    schema = Wav2LipParams.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
    assert json.loads(json.dumps(schema)) == schema


def test_the_spec_needs_no_torch() -> None:
    hidden = "sys.modules.update(torch=None, cv2=None, numpy=None)"
    code = f"import sys; {hidden}; from deployments.wav2lip.spec import SPEC; print(SPEC.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "wav2lip"
