"""The model that CONTRIBUTING.md has people paste makes a video."""

import re
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

import deployments
from deployments.engine import InputFile, ModelSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from tests.fakes import media

PAGE = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
NAMED = re.compile(r"^\*\*\d\.\*\* `deployments/still/(\w+\.py)`.*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """As the registry would have it, from the page's own text."""
    folder = tmp_path / "still"
    folder.mkdir()
    files = dict(NAMED.findall(PAGE))
    assert files.keys() == {"__init__.py", "spec.py", "engine.py"}
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(deployments, "__path__", [*deployments.__path__, str(tmp_path)])
    from deployments.still.spec import SPEC  # type: ignore[import-not-found]

    return SPEC


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, InputFile]:
    image = tmp_path / "image"
    # Odd sizes, which H.264 does not take.
    Image.linear_gradient("L").convert("RGB").resize((301, 199)).save(image, "PNG")
    sound = media.tone(tmp_path / "sound.wav", seconds=1)
    return {"image": InputFile(image, "image/png"), "audio": InputFile(sound, "audio/wav")}


def test_the_example_makes_a_video(spec: ModelSpec, inputs: dict[str, InputFile], tmp_path: Path) -> None:
    engine, steps = spec.load_engine(), []
    prepared = engine.prepare({"fps": 10}, inputs, tmp_path)
    result = engine.run(prepared, lambda stage, fraction: steps.append(fraction))
    rendered = engine.publish(result, tmp_path)
    assert steps == [number / 10 for number in range(10)]
    assert (rendered.media.fps, rendered.media.frames, rendered.media.has_audio) == ("10/1", 10, True)
    with av.open(str(rendered.path)) as video:
        shown = video.streams.video[0]
        assert (shown.width, shown.height, shown.average_rate) == (640, 360, Fraction(10))
        assert len(video.streams.audio) == 1


def test_the_example_says_what_is_wrong_with_a_file(
    spec: ModelSpec, inputs: dict[str, InputFile], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"RIFF" + bytes(200))
    engine = spec.load_engine()
    with pytest.raises(Fault, match="Input 'audio'") as fault:
        engine.prepare({}, {**inputs, "audio": InputFile(broken, "audio/wav")}, tmp_path)
    assert fault.value.code is FailureCode.INVALID_MEDIA
    with pytest.raises(Fault) as fault:
        engine.prepare({}, {**inputs, "image": InputFile(broken, "video/mp4")}, tmp_path)
    assert fault.value.code is FailureCode.UNSUPPORTED_MEDIA
