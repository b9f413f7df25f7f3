"""What is told of weights before anything loads: each model's own look, the variable and the cause in words."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from deployments.engine import ModelSpec
from deployments.registry import MODELS
from deployments.replica import Replica
from deployments.run import Reporter
from deployments.weights import CheckpointError, check_file
from tests.fakes.engines import ScriptedEngine, spec_of


def gone(path: Path) -> None:
    """Nothing there."""


def empty_file(path: Path) -> None:
    path.touch()


def empty_folder(path: Path) -> None:
    path.mkdir()


def web_page(path: Path) -> None:
    path.write_text("  <!DOCTYPE html><html>quota exceeded</html>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 436\n")


def cut_off(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"x" * 167_000)


def pipe(path: Path) -> None:
    path.touch()
    path.unlink()
    path.symlink_to("/dev/zero")


VARIABLES = [(spec, variable) for spec in MODELS.values() for variable in spec.weights_checks]


@pytest.mark.parametrize("make", [gone, empty_file, empty_folder, web_page, pointer, cut_off, pipe])
@pytest.mark.parametrize(("spec", "variable"), VARIABLES, ids=[variable for _, variable in VARIABLES])
def test_every_model_s_wrong_path_is_told_with_its_variable(
    spec: ModelSpec, variable: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    make(path)
    (fault,) = spec.weights_faults({variable: str(path)})
    assert fault.startswith(f"{variable}={path}: ")
    # More than the name again.
    assert len(fault) > len(f"{variable}={path}: ") + 10


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_every_model_brings_a_look_at_its_weights(spec: ModelSpec) -> None:
    assert spec.weights_variable in spec.weights_checks


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("environment", [{}, {"LTX2_MODEL_PATH": "", "WAV2LIP_MODEL_PATH": ""}], ids=["unset", "empty"])
def test_no_weights_are_refused_unless_noise_is_allowed(spec: ModelSpec, environment: dict[str, str]) -> None:
    spec.require_weights(environment, allow_random=True)
    with pytest.raises(CheckpointError, match=rf"^{spec.weights_variable} is not set on this node: .*ALLOW_RANDOM_W"):
        spec.require_weights(environment, allow_random=False)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_a_wrong_path_is_no_excuse_for_noise(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=spec.weights_variable):
        spec.require_weights({spec.weights_variable: str(tmp_path / "gone")}, allow_random=True)


def test_a_replica_refuses_before_it_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    spec = replace(spec_of(engine), weights_checks={"SCRIPTED_MODEL_PATH": check_file})
    monkeypatch.setitem(MODELS, "scripted", spec)
    # Loading would be minutes, and a GPU that is paid.
    loaded: list[ModelSpec] = []
    monkeypatch.setattr(type(spec), "load_engine", lambda spec: loaded.append(spec) or engine)
    reporter = cast("Reporter", object())

    with pytest.raises(CheckpointError, match="SCRIPTED_MODEL_PATH is not set on this node"):
        Replica("scripted", reporter, allow_random_weights=False)
    monkeypatch.setenv("SCRIPTED_MODEL_PATH", str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"SCRIPTED_MODEL_PATH=.*gone: "):
        Replica("scripted", reporter)
    assert loaded == []

    (tmp_path / "gone").write_bytes(b"weights")
    Replica("scripted", reporter, allow_random_weights=False)
    assert loaded == [spec]
