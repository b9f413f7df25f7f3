import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.ltx2 import checkpoint
from deployments.ltx2.checkpoint import RANDOM_MARKER
from deployments.ltx2.engine import LTX2Engine
from deployments.ltx2.pipeline import Pipeline
from deployments.ltx2.spec import SPEC
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError

FolderOf = Callable[[Version], Path]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copy_of(folder_of: FolderOf, tmp_path: Path) -> FolderOf:
    def copy(version: Version) -> Path:
        return Path(shutil.copytree(folder_of(version), tmp_path / "copy"))

    return copy


@pytest.mark.parametrize("version", Version)
def test_each_generation_is_recognised(version: Version, folder_of: FolderOf) -> None:
    facts = checkpoint.read(folder_of(version))
    assert facts.version is version
    assert facts.random_weights
    assert facts.layers == 2
    assert facts.text_tokens == 64
    assert facts.has_audio is (version is not Version.LTX_VIDEO)


def test_real_weights_are_those_without_the_marker(copy_of: FolderOf) -> None:
    folder = copy_of(Version.LTX_2_0)
    (folder / RANDOM_MARKER).unlink()
    assert not checkpoint.read(folder).random_weights


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (Version.LTX_2_0, "LTX2Pipeline"),
        (Version.LTX_VIDEO, "LTXPipeline"),
        (Version.LTX_VIDEO, "LTXConditionPipeline"),
    ],
)
def test_folders_published_for_a_sister_pipeline_load_too(version: Version, name: str, copy_of: FolderOf) -> None:
    folder = copy_of(version)
    edit(folder / "model_index.json", _class_name=name)
    pipeline = Pipeline(folder)
    assert pipeline.checkpoint.version is version
    assert "ImageToVideo" in type(pipeline._pipe).__name__


@pytest.mark.parametrize("model_type", ["gemma4", "gemma4_unified"])
def test_a_gemma_4_text_encoder_means_2_5(model_type: str, copy_of: FolderOf) -> None:
    folder = copy_of(Version.LTX_2_3)
    edit(folder / "text_encoder" / "config.json", model_type=model_type)
    assert checkpoint.read(folder).version is Version.LTX_2_5


@pytest.mark.parametrize(
    ("version", "allowed", "expected"),
    [
        (Version.LTX_2_0, 10**30, 1024),
        (Version.LTX_2_0, 1000, 992),
        (Version.LTX_VIDEO, 10**30, 128),
        (Version.LTX_VIDEO, 100, 100),
    ],
)
def test_prompt_length_fits_tokenizer_and_registers(
    version: Version, allowed: int, expected: int, copy_of: FolderOf
) -> None:
    folder = copy_of(version)
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=allowed)
    assert checkpoint.read(folder).text_tokens == expected


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"safetensors")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def list_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def other_model(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="WanPipeline")


def no_vocoder(folder: Path) -> None:
    shutil.rmtree(folder / "vocoder")


def no_transformer_config(folder: Path) -> None:
    (folder / "transformer" / "config.json").unlink()


def few_tokens(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nothing, "not a folder"),
        (a_file, "single .safetensors file is not enough"),
        (no_index, "model_index.json is missing"),
        (broken_index, "cannot be read"),
        (list_index, "no JSON object"),
        (other_model, "WanPipeline"),
        (no_vocoder, "lacks the subfolders vocoder"),
        (no_transformer_config, "transformer/config.json is missing"),
        (few_tokens, "fewer than 16 registers"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_the_reason(
    damage: Callable[[Path], None], message: str, copy_of: FolderOf
) -> None:
    folder = copy_of(Version.LTX_2_0)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(folder)


def test_missing_weights_are_refused_on_load(copy_of: FolderOf) -> None:
    folder = copy_of(Version.LTX_2_0)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded as LTX2ImageToVideoPipeline"):
        Pipeline(folder)


@pytest.mark.parametrize("version", Version)
def test_a_cheap_look_lets_every_whole_checkpoint_pass(version: Version, folder_of: FolderOf) -> None:
    checkpoint.check(folder_of(version))


def none_at_all(part: Path) -> None:
    (part / "diffusion_pytorch_model.safetensors").unlink()


def a_pointer(part: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 436\n"
    (part / "diffusion_pytorch_model.safetensors").write_text(pointer)


def cut_at_once(part: Path) -> None:
    (part / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def two_of_three(part: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for name in names[:2]:
        (part / name).write_bytes(b"weights")
    index = {"weight_map": {f"block.{number}": name for number, name in enumerate(names)}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (none_at_all, "transformer holds no weights"),
        (a_pointer, "Git LFS"),
        (cut_at_once, "empty files"),
        (two_of_three, "transformer lacks diffusion_pytorch_model-00003-of-00003.safetensors; the download"),
    ],
)
def test_a_cheap_look_sees_a_download_that_broke_off(
    damage: Callable[[Path], None], message: str, copy_of: FolderOf
) -> None:
    folder = copy_of(Version.LTX_2_0)
    damage(folder / "transformer")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check(folder)


def no_config(part: Path) -> None:
    (part / "config.json").unlink()


def of_ltx_video(part: Path) -> None:
    edit(part / "config.json", _class_name="LTXLatentUpsamplerModel")


def by_half(part: Path) -> None:
    edit(part / "config.json", rational_spatial_scale=1.5)


def in_time(part: Path) -> None:
    edit(part / "config.json", temporal_upsample=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, "latent_upsampler/config.json is missing; expected the folder of an LTX2LatentUpsamplerModel"),
        (of_ltx_video, "is for LTXLatentUpsamplerModel; expected"),
        (by_half, "that doubles width and height"),
        (in_time, "that doubles width and height"),
        (none_at_all, "latent_upsampler holds no weights"),
    ],
)
def test_a_cheap_look_sees_an_upsampler_that_is_none(
    damage: Callable[[Path], None], message: str, copy_of: FolderOf
) -> None:
    folder = copy_of(Version.LTX_2_5)
    damage(folder / "latent_upsampler")
    # Whether it is looked for in a checkpoint or named itself.
    for place in (folder, folder / "latent_upsampler"):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.check_upsampler(place)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check(folder)


def test_an_upsampler_is_found_in_its_folder_and_in_that_of_a_checkpoint(folder_of: FolderOf) -> None:
    part = folder_of(Version.LTX_2_0) / "latent_upsampler"
    assert checkpoint.check_upsampler(part) == checkpoint.check_upsampler(part.parent) == part


def test_a_checkpoint_without_one_is_whole_and_has_the_other_recipes(copy_of: FolderOf) -> None:
    folder = copy_of(Version.LTX_2_0)
    shutil.rmtree(folder / "latent_upsampler")
    checkpoint.check(folder)
    assert Pipeline(folder).recipes == ("standard", "quality")


def test_the_upsampler_of_ltx_video_is_none_of_ours(copy_of: FolderOf) -> None:
    folder = copy_of(Version.LTX_VIDEO)
    (folder / "latent_upsampler").mkdir()
    checkpoint.check(folder)
    assert Pipeline(folder).recipes == ("standard", "quality")


def test_the_engine_names_the_variable_of_a_bad_upsampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTX2_UPSAMPLER", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"^LTX2_UPSAMPLER=.*absent: .*config.json is missing"):
        LTX2Engine()
    assert SPEC.weights_faults({"LTX2_UPSAMPLER": str(tmp_path)})[0].startswith(f"LTX2_UPSAMPLER={tmp_path}: ")


def test_the_engine_names_the_variable_of_a_bad_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTX2_MODEL_PATH", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"^LTX2_MODEL_PATH=.*absent: .*not a folder"):
        LTX2Engine()
