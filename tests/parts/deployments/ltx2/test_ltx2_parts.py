"""Sizes of a checkpoint's parts are read without loading them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.ltx2 import parts
from deployments.ltx2.parts import Part
from deployments.ltx2.pipeline import Pipeline
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError
from tests.benchmarks.live_bytes import bytes_of


@pytest.mark.parametrize("version", [Version.LTX_2_3, Version.LTX_VIDEO])
def test_headers_say_what_the_loaded_modules_take(
    version: Version, folder_of: Callable[[Version], Path], pipeline_of: Callable[[Version], Pipeline]
) -> None:
    read = parts.read(folder_of(version), 4)
    pipeline = pipeline_of(version)
    modules = {name: each for name, each in pipeline._pipe.components.items() if isinstance(each, torch.nn.Module)}
    if pipeline._upsampler is not None:
        modules["latent_upsampler"] = pipeline._upsampler
    assert read.keys() == modules.keys()
    for name, module in modules.items():
        # Buffers that are made anew, such as of positions, are in no file.
        assert read[name].size <= bytes_of(module) <= 1.1 * read[name].size + 20_000, name
    config = pipeline._pipe.transformer.config
    assert parts.width_of(folder_of(version)) == config.num_attention_heads * config.attention_head_dim


def test_types_are_cast_variants_are_left_out_and_another_upsampler_counts(tmp_path: Path) -> None:
    transformer, other = tmp_path / "transformer", tmp_path / "other"
    for folder in (transformer, tmp_path / "latent_upsampler", other):
        folder.mkdir()
    wide = {
        "a": torch.zeros(10, 10),
        "b": torch.zeros(5, dtype=torch.float8_e4m3fn),
        "ids": torch.zeros(3, dtype=torch.int64),
    }
    save_file(wide, transformer / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    save_file(wide, transformer / "diffusion_pytorch_model.fp16.safetensors")
    save_file({"c": torch.zeros(7)}, other / "model.safetensors")
    assert parts.read(tmp_path, 2, other) == {
        "transformer": Part(200 + 10 + 24, 200 + 24),
        "latent_upsampler": Part(14, 14),
    }


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, (8).to_bytes(8, "little") + b"not json"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vae/model\.safetensors cannot be read as safetensors"):
        parts.read(tmp_path, 2)
