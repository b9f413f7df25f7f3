"""Tiny checkpoints, built and loaded once per test session."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deployments.ltx2 import tiny
from deployments.ltx2.checkpoint import Version
from deployments.ltx2.pipeline import Pipeline, Shot


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def folder_of(tiny_root: Path) -> Callable[[Version], Path]:
    return lambda version: tiny.ensure(tiny_root, version)


@pytest.fixture(scope="session")
def pipeline_of(folder_of: Callable[[Version], Path]) -> Callable[[Version], Pipeline]:
    """Loaded pipelines, shared: a test that changes one has to change it back."""
    loaded: dict[Version, Pipeline] = {}

    def get(version: Version) -> Pipeline:
        if version not in loaded:
            loaded[version] = Pipeline(folder_of(version))
        return loaded[version]

    return get


@pytest.fixture
def shot() -> Callable[..., Shot]:
    """A small shot; keyword arguments replace its fields."""

    def make(**changes: Any) -> Shot:
        width, height = changes.get("width", 64), changes.get("height", 64)
        fields: dict[str, Any] = {
            "prompt": "a quiet street at dawn",
            "negative_prompt": "blurry",
            "image": Image.linear_gradient("L").convert("RGB").resize((width, height)),
            "width": width,
            "height": height,
            "frames": 9,
            "fps": 24,
            "recipe": "standard",
            "seed": 1,
        }
        return Shot(**(fields | changes))

    return make


class Forwards(list[dict[str, Any]]):
    """Arguments of every call of the transformer."""

    @property
    def batches(self) -> list[int]:
        return [call["hidden_states"].shape[0] for call in self]


@contextmanager
def watch(pipeline: Pipeline) -> Iterator[Forwards]:
    """Records the transformer's calls as the model itself sees them, and the scheduler's sigmas at each."""
    calls = Forwards()

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({**kwargs, "sigmas": pipeline._pipe.scheduler.sigmas.tolist()})

    handle = pipeline._pipe.transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def watching() -> Callable[[Pipeline], Any]:
    return watch
