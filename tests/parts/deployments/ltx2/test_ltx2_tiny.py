import hashlib
import json
from pathlib import Path

import pytest
import torch

from deployments.ltx2 import tiny
from deployments.ltx2.checkpoint import RANDOM_MARKER
from deployments.ltx2.versions import VERSIONS, Version


def contents(folder: Path) -> dict[str, str]:
    """Digest by relative path, without the facts that may name a library."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }


def test_it_is_small_and_marked_as_random(tiny_root: Path) -> None:
    for version in Version:
        folder = tiny.ensure(tiny_root, version)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000
        assert (folder / RANDOM_MARKER).is_file()


@pytest.mark.parametrize("version", Version)
def test_it_has_what_the_real_one_ships(version: Version, tiny_root: Path) -> None:
    folder, row = tiny.ensure(tiny_root, version), VERSIONS[version]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["use_dynamic_shifting"] is row.ships_shifting
    assert (folder / "latent_upsampler" / "config.json").is_file() is row.two_stages


def test_a_second_call_builds_nothing(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.ensure(tiny_root)

    def fail(folder: Path, version: Version) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(tiny, "build", fail)
    assert tiny.ensure(tiny_root) == first


def test_another_layout_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.ensure(tmp_path, Version.LTX_VIDEO)
    monkeypatch.setattr("deployments.ltx2.tiny.diffusers.__version__", "99")
    after = tiny.ensure(tmp_path, Version.LTX_VIDEO)
    assert after != before
    assert (after / RANDOM_MARKER).is_file()


def test_of_two_builders_the_first_wins_and_nothing_is_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tiny.build
    winner: list[Path] = []

    def slow(folder: Path, version: Version) -> None:
        """Another process begins and ends while this one builds."""
        build(folder, version)
        monkeypatch.setattr(tiny, "build", build)
        winner.append(tiny.ensure(tmp_path, version))
        (winner[0] / "first").touch()

    monkeypatch.setattr(tiny, "build", slow)
    assert tiny.ensure(tmp_path, Version.LTX_VIDEO) == winner[0]
    assert (winner[0] / "first").exists()
    assert list(tmp_path.iterdir()) == winner


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, version: Version) -> None:
        (folder / "model_index.json").touch()
        raise OSError("disk full")

    monkeypatch.setattr(tiny, "build", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_the_same_every_time_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    for name in ("a", "b"):
        tiny.build(tmp_path / name, Version.LTX_2_0)
    assert torch.rand(1) == expected
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != {}
