"""What the Serve application is built of, without running it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import serve

from deployments.registry import MODELS
from serve_app.app import AppArgs, build
from serve_app.settings import ConfigurationError, Environment


def replicas_of(environment: Environment) -> dict[str, dict[str, Any]]:
    """Arguments of each deployment's replicas, but which it is."""
    api = build(AppArgs(environment=environment))._bound_deployment
    (dispatcher,) = [arg._bound_deployment for arg in api.init_args if isinstance(arg, serve.Application)]
    _, _, handles = dispatcher.init_args
    found = {name: dict(handle._bound_deployment.init_kwargs) for name, handle in handles.items()}
    assert [each.pop("deployment") for each in found.values()] == list(found)
    return found


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("API_KEY", "WEBHOOK_SECRET", "SECRET_KEY"):
        monkeypatch.setenv(name, name.lower() * 4)
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("PUBLIC_URL", "https://video.example.com")
    monkeypatch.delenv("ALLOW_RANDOM_WEIGHTS", raising=False)
    return monkeypatch


@pytest.mark.parametrize(("said", "allowed"), [(None, False), ("0", False), ("1", True)])
def test_in_production_noise_has_to_be_asked_for(
    production: pytest.MonkeyPatch, said: str | None, allowed: bool
) -> None:
    if said is not None:
        production.setenv("ALLOW_RANDOM_WEIGHTS", said)
    assert replicas_of("production") == {name: {"allow_random_weights": allowed} for name in MODELS}


def test_a_laptop_makes_noise_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDEO_API_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ALLOW_RANDOM_WEIGHTS", "0")
    assert replicas_of("local") == {name: {"allow_random_weights": True} for name in MODELS}


def test_on_one_machine_a_wrong_path_fails_the_deploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDEO_API_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LTX2_MODEL_PATH", "/nowhere")
    with pytest.raises(ConfigurationError, match="LTX2_MODEL_PATH=/nowhere: "):
        build(AppArgs(environment="local"))


def test_a_head_does_not_look_for_what_its_nodes_have(production: pytest.MonkeyPatch) -> None:
    production.setenv("LTX2_MODEL_PATH", "/only/on/the/nodes")
    assert replicas_of("production").keys() == MODELS.keys()


def test_a_class_is_a_deployment_of_its_own_and_has_to_be_one_that_there_is() -> None:
    args = AppArgs(classes={"ltx2": [40, 80]}, max_replicas={"ltx2-40gb": 2})
    assert [each.name for each in args.deployments] == ["ltx2", "ltx2-40gb", "wav2lip"]
    for wrong, why in (
        ({"classes": {"ltx2": [32]}}, "no such class: 32"),
        ({"max_replicas": {"ltx2-40gb": 2}}, "ltx2-40gb"),
    ):
        with pytest.raises(ValidationError, match=why):
            AppArgs.model_validate(wrong)
