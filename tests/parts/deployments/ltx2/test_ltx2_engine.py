import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pytest
from PIL import Image
from structlog.testing import capture_logs

from deployments.contract import ANY_SIZE
from deployments.engine import InputFile
from deployments.faults import Fault
from deployments.ltx2 import engine as engine_module
from deployments.ltx2.engine import RANDOM_SIZE, LTX2Engine, fit_length
from deployments.ltx2.spec import DEFAULT_SIZE
from deployments.ltx2.versions import Version
from deployments.media import codec, poster
from deployments.media.formats import FORMATS, Format, names
from deployments.media.mp4 import VideoCodec


def no_step(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="session")
def engine_of(folder_of: Callable[[Version], Path]) -> Callable[[Version], LTX2Engine]:
    engines: dict[Version, LTX2Engine] = {}

    def get(version: Version) -> LTX2Engine:
        if version not in engines:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LTX2_MODEL_PATH", str(folder_of(version)))
                engines[version] = LTX2Engine()
        return engines[version]

    return get


@pytest.fixture
def engine(engine_of: Callable[[Version], LTX2Engine]) -> LTX2Engine:
    return engine_of(Version.LTX_2_0)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, InputFile]:
    path = tmp_path / "input"
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(path, "JPEG")
    return {"image": InputFile(path, "image/jpeg")}


def test_without_a_path_it_builds_random_weights_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LTX2_MODEL_PATH", raising=False)
    monkeypatch.setenv("VIDEO_API_DATA_DIR", str(tmp_path / "data"))
    assert LTX2Engine().random_weights
    assert list((tmp_path / "data").rglob("RANDOM_WEIGHTS"))


def test_what_the_client_left_open_is_settled(engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path) -> None:
    shots = [engine.prepare({}, inputs, tmp_path) for _ in range(2)]
    assert (shots[0].width, shots[0].height) == RANDOM_SIZE == shots[0].image.size
    assert (shots[0].frames, shots[0].fps, shots[0].recipe) == (121, 24, "fast")
    assert shots[0].seed != shots[1].seed


def test_without_a_picture_text_alone_makes_the_video(engine: LTX2Engine, tmp_path: Path) -> None:
    shot = engine.prepare({"prompt": "waves"}, {}, tmp_path)
    assert (shot.image, shot.prompt, shot.width, shot.height) == (None, "waves", *RANDOM_SIZE)


def test_it_says_by_which_recipes_it_can_be_asked(engine_of: Callable[[Version], LTX2Engine]) -> None:
    two_stages, one_stage = (engine_of(version).ability() for version in (Version.LTX_2_0, Version.LTX_VIDEO))
    assert (two_stages.weights, two_stages.default_variant) == (str(Version.LTX_2_0), "fast")
    assert two_stages.variants.keys() == {"fast", "standard", "quality"}
    assert (one_stage.weights, one_stage.default_variant) == (str(Version.LTX_VIDEO), "standard")
    assert one_stage.variants.keys() == {"standard", "quality"}


def test_what_the_memory_has_no_room_for_it_cannot_be_asked(
    engine: LTX2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan", replace(engine.plan, largest={"fast": 9, "standard": 7, "quality": 0}))
    # Whose videos are noise are made smaller than the head reckons.
    assert engine.ability().variants == {"fast": ANY_SIZE, "standard": ANY_SIZE}
    monkeypatch.setattr(engine, "random_weights", False)
    found = engine.ability()
    assert (found.variants, found.plan) == ({"fast": 9, "standard": 7}, str(engine.plan))


def test_real_weights_default_to_their_own_size(
    engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "random_weights", False)
    shot = engine.prepare({}, inputs, tmp_path)
    assert (shot.width, shot.height) == DEFAULT_SIZE == shot.image.size


def test_the_client_decides(engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path) -> None:
    params = {
        "prompt": "waves",
        "negative_prompt": "rain",
        "duration": 2,
        "fps": 12,
        "width": 96,
        "height": 64,
        "recipe": "quality",
        "fit": "letterbox",
        "seed": 5,
    }
    shot = engine.prepare(params, inputs, tmp_path)
    assert (shot.prompt, shot.negative_prompt, shot.recipe, shot.seed) == ("waves", "rain", "quality", 5)
    assert (shot.width, shot.height, shot.frames, shot.fps) == (96, 64, 25, 12)
    assert shot.image.size == (96, 64)
    # 3:2 into 3:2: nothing to cut, nothing to pad.
    assert np.asarray(shot.image)[-1].max() > 200


@pytest.mark.parametrize(("version", "default"), [(Version.LTX_2_3, "fast"), (Version.LTX_VIDEO, "standard")])
def test_what_nobody_names_is_made_by_the_first_recipe_there_is(
    version: Version,
    default: str,
    engine_of: Callable[[Version], LTX2Engine],
    inputs: dict[str, InputFile],
    tmp_path: Path,
) -> None:
    engine = engine_of(version)
    params = {"duration": 1, "fps": 8, "width": 64, "height": 64}
    for recipe in (None, "standard"):
        footage = engine.run(engine.prepare({**params, "recipe": recipe}, inputs, tmp_path), no_step)
        assert engine.publish(footage, tmp_path).notes["recipe"] == (recipe or default)


def test_the_log_tells_which_recipes_there_are(
    folder_of: Callable[[Version], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTX2_MODEL_PATH", str(folder_of(Version.LTX_VIDEO)))
    with capture_logs() as logs:
        LTX2Engine()
    loaded = {
        "event": "ltx2_loaded",
        "log_level": "info",
        "checkpoint": "ltx-video",
        "recipes": ("standard", "quality"),
        "default": "standard",
    }
    assert loaded in logs


def test_the_upsampler_that_the_variable_names_makes_it_fast(
    folder_of: Callable[[Version], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folder_of(Version.LTX_2_0), tmp_path / "copy"))
    (folder / "latent_upsampler").rename(tmp_path / "apart")
    monkeypatch.setenv("LTX2_MODEL_PATH", str(folder))
    monkeypatch.setenv("LTX2_UPSAMPLER", str(tmp_path / "apart"))
    assert LTX2Engine()._pipeline.recipes[0] == "fast"


def test_a_card_that_does_not_encode_after_all_costs_no_video(
    engine: LTX2Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [VideoCodec(("-c:v", "no_such_encoder"), on_card=True)]
    monkeypatch.setattr(
        engine_module,
        "video_codec",
        lambda *size, cuda: broken.pop() if broken else codec.video_codec(*size, cuda=cuda),
    )
    footage = engine.run(engine.prepare({"width": 64, "height": 64, "duration": 1}, {}, tmp_path), no_step)
    with capture_logs() as logs:
        made = engine.publish(footage, tmp_path)
    assert [line["event"] for line in logs] == ["card_did_not_encode"]
    with av.open(str(made.path)) as film:
        assert film.streams.video[0].frames == made.media.frames


def test_an_unreadable_image_is_the_clients_fault(engine: LTX2Engine, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"<html>")
    with pytest.raises(Fault) as caught:
        engine.prepare({}, {"image": InputFile(tmp_path / "input", "image/jpeg")}, tmp_path)
    assert (caught.value.code, caught.value.transient) == ("invalid_media", False)
    assert caught.value.message.startswith("Input 'image': The image can't be decoded.")


# Among them the one by which intake says that an animation is to be read as a video.
@pytest.mark.parametrize("content_type", ["video/mp4", "video/x-gif", "audio/mp4", "application/octet-stream"])
def test_only_what_the_model_takes_is_opened(engine: LTX2Engine, tmp_path: Path, content_type: str) -> None:
    with pytest.raises(Fault) as caught:
        engine.prepare({}, {"image": InputFile(tmp_path / "never opened", content_type)}, tmp_path)
    assert caught.value.code == "unsupported_media"
    assert caught.value.message == f"Input 'image': This is {content_type}. Send an image ({names('image')})."


@pytest.mark.parametrize("format", [format for format in FORMATS if format.kind == "image"], ids=lambda one: one.name)
def test_every_format_of_an_image_is_taken(engine: LTX2Engine, tmp_path: Path, format: Format) -> None:
    pillow_heif.register_heif_opener()
    path = tmp_path / "picture"
    Image.new("RGB", (64, 64), "red").save(path, format.pillow)
    engine.prepare(
        {"width": 64, "height": 64, "duration": 1}, {"image": InputFile(path, format.content_type)}, tmp_path
    )


def probe(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        facts: dict[str, Any] = {
            "codec": video.codec_context.name,
            "pixels": video.codec_context.pix_fmt,
            # 1 is BT.709.
            "matrix": video.codec_context.colorspace,
            "primaries": video.codec_context.color_primaries,
            "size": (video.width, video.height),
            "fps": video.average_rate,
            "frames": sum(1 for _ in container.decode(video)),
        }
    with av.open(str(path)) as container:
        if container.streams.audio:
            audio = container.streams.audio[0]
            facts["audio"] = (audio.codec_context.name, audio.codec_context.channels, audio.rate)
            assert audio.duration is not None
            assert audio.time_base is not None
            facts["audio_seconds"] = float(audio.duration * audio.time_base)
    return facts


@pytest.mark.parametrize(("version", "rate"), [(Version.LTX_2_0, 24_000), (Version.LTX_2_3, 48_000)])
@pytest.mark.parametrize("fps", [15, 24, 30])
def test_a_job_ends_as_a_playable_mp4_with_sound(
    version: Version,
    rate: int,
    fps: int,
    engine_of: Callable[[Version], LTX2Engine],
    inputs: dict[str, InputFile],
    tmp_path: Path,
) -> None:
    engine = engine_of(version)
    params = {"duration": 1, "fps": fps, "width": 96, "height": 64, "seed": 3}
    rendered = engine.publish(engine.run(engine.prepare(params, inputs, tmp_path), no_step), tmp_path)
    frames = fps // 8 * 8 + 1
    facts = probe(rendered.path)
    assert facts["audio_seconds"] == pytest.approx(frames / fps, abs=0.03)
    del facts["audio_seconds"]
    assert facts == {
        "codec": "h264",
        "pixels": "yuv420p",
        "matrix": 1,
        "primaries": 1,
        "size": (96, 64),
        "fps": Fraction(fps),
        "frames": frames,
        "audio": ("aac", 2, rate),
    }
    assert rendered.media.model_dump() == {
        "width": 96,
        "height": 64,
        "fps": f"{fps}/1",
        "frames": frames,
        "has_audio": True,
    }
    assert rendered.notes == {"seed": 3, "recipe": "fast", "checkpoint": str(version)}


@pytest.mark.parametrize("recipe", ["fast", "standard"])
def test_a_video_has_exactly_the_size_that_was_asked_for(
    recipe: str, engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path
) -> None:
    params = {"duration": 1, "fps": 8, "width": 178, "height": 100, "recipe": recipe}
    rendered = engine.publish(engine.run(engine.prepare(params, inputs, tmp_path), no_step), tmp_path)
    assert probe(rendered.path)["size"] == (rendered.media.width, rendered.media.height) == (178, 100)


def test_ltx_video_ends_as_a_silent_mp4(
    engine_of: Callable[[Version], LTX2Engine], inputs: dict[str, InputFile], tmp_path: Path
) -> None:
    engine = engine_of(Version.LTX_VIDEO)
    params = {"duration": 1, "fps": 8, "width": 64, "height": 64}
    rendered = engine.publish(engine.run(engine.prepare(params, inputs, tmp_path), no_step), tmp_path)
    facts = probe(rendered.path)
    assert facts["frames"] == 9
    assert "audio" not in facts
    poster.make(rendered.path, tmp_path / "poster.webp")
    with Image.open(tmp_path / "poster.webp") as first:
        assert first.size == (64, 64)
    assert not rendered.media.has_audio


def test_the_noted_seed_makes_the_same_video_again(
    engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path
) -> None:
    params = {"duration": 1, "fps": 8, "width": 64, "height": 64}
    first = engine.run(engine.prepare(params, inputs, tmp_path), no_step)
    seed = engine.publish(first, tmp_path).notes["seed"]
    again = engine.run(engine.prepare({**params, "seed": seed}, inputs, tmp_path), no_step)
    assert np.array_equal(first.clip.frames, again.clip.frames)


@pytest.mark.parametrize("samples", [0, 3, 5, 9])
def test_sound_is_cut_or_padded(samples: int) -> None:
    audio = np.ones((2, 5), dtype=np.float32)
    fitted = fit_length(audio, samples)
    assert fitted.shape == (2, samples)
    assert fitted.dtype == np.float32
    assert fitted.sum() == 2 * min(5, samples)


def test_free_is_harmless(engine: LTX2Engine, inputs: dict[str, InputFile], tmp_path: Path) -> None:
    engine.free()
    shot = engine.prepare({"duration": 1, "fps": 8, "width": 64, "height": 64}, inputs, tmp_path)
    assert engine.run(shot, no_step).clip.frames.any()
