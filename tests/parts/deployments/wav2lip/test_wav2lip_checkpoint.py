"""The forms in which checkpoints circulate, and the files that are none."""

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deployments.wav2lip import checkpoint
from deployments.wav2lip.spec import SMALLEST
from deployments.weights import CheckpointError


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return checkpoint.random_weights(5)


def published(weights: dict[str, Tensor], path: Path, **options: Any) -> None:
    """As the original's training writes it."""
    prefixed = OrderedDict((f"module.{name}", value) for name, value in weights.items())
    content = {"state_dict": prefixed, "optimizer": {"state": {0: {"step": 1}}}, "global_step": 1, "global_epoch": 0}
    torch.save(content, path, **options)


FORMS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "published.pth": published,
    "legacy.pth": lambda weights, path: published(weights, path, _use_new_zipfile_serialization=False),
    "bare.pt": lambda weights, path: torch.save(weights, path),
    "half.safetensors": lambda weights, path: save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, path
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_in_circulation(tmp_path: Path, weights: dict[str, Tensor], name: str) -> None:
    path = tmp_path / name
    FORMS[name](weights, path)
    network = checkpoint.load(path)
    path.unlink()
    loaded = network.state_dict()
    assert loaded.keys() == weights.keys()
    assert not network.training
    for key, value in loaded.items():
        assert value.dtype in (torch.float32, torch.int64)
        expected = weights[key].half().float() if name.startswith("half") else weights[key].to(value.dtype)
        assert torch.equal(value, expected)


def test_conversion_keeps_the_weights(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    published(weights, tmp_path / "a.pth")
    checkpoint.convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    loaded = checkpoint.read(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


class Bomb:
    """Makes a file when a careless loader reads it."""

    def __init__(self, crater: Path) -> None:
        self._crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._crater,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_poisoned_pickle_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    path, crater = tmp_path / "wav2lip.pth", tmp_path / "crater"
    content = {"state_dict": {}, "bomb": Bomb(crater), "bulk": torch.zeros(SMALLEST // 4 + 1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="more than weights"):
        checkpoint.load(path)
    assert not crater.exists()
    # The bomb is live: it goes off in a loader without the guard.
    torch.load(path, weights_only=False)
    assert crater.exists()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "wav2lip.pth"
    with pytest.raises(CheckpointError, match="not a file"):
        checkpoint.load(path)
    path.write_text("<!DOCTYPE html><html>quota exceeded</html>")
    with pytest.raises(CheckpointError, match="web page"):
        checkpoint.load(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 436\n")
    with pytest.raises(CheckpointError, match="LFS"):
        checkpoint.load(path)
    path.write_bytes(b"\x80\x02" + b"x" * 167_000)
    with pytest.raises(CheckpointError, match="167002 bytes"):
        checkpoint.load(path)
    with path.open("wb") as file:
        file.write(b"\x80\x02garbage")
        file.truncate(SMALLEST + 1)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    path = tmp_path / "wav2lip.safetensors"
    with path.open("wb") as file:
        file.truncate(SMALLEST + 1)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_download_that_broke_off(tmp_path: Path, weights: dict[str, Tensor], zipped: bool) -> None:
    path = tmp_path / "wav2lip.pth"
    published(weights, path, _use_new_zipfile_serialization=zipped)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * 0.6))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wav2lip.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wav2lip/code/__torch__.py", "")
        archive.writestr("wav2lip/constants.pkl", b"\0" * (SMALLEST + 1))
    with pytest.raises(CheckpointError, match="TorchScript"):
        checkpoint.load(path)


def test_other_networks_are_refused(weights: dict[str, Tensor]) -> None:
    name = "face_decoder_blocks.0.0.conv_block.0.weight"
    with pytest.raises(CheckpointError, match="288"):
        checkpoint.build({**weights, name: torch.zeros(512, 512, 2, 2)}, "wide.pth")
    with pytest.raises(CheckpointError, match="1 entries are missing"):
        checkpoint.build({key: value for key, value in weights.items() if key != name}, "short.pth")
    with pytest.raises(CheckpointError, match=r"1 unknown \(face_encoder_blocks.7"):
        checkpoint.build({**weights, "face_encoder_blocks.7": torch.zeros(1)}, "long.pth")
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.build({**weights, name: torch.full((512, 512, 1, 1), torch.nan)}, "nan.pth")
