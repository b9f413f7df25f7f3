"""Tiny checkpoints, built, loaded and rendered once per test session."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deployments.ltx2 import tiny
from deployments.ltx2.pipeline import Clip, Pipeline, Shot
from deployments.ltx2.recipes import Recipe, RecipeName
from deployments.ltx2.versions import Version


def batch_items(recipe: Recipe) -> int:
    """What a clip costs, in forwards of one batch item: the sum of the batch sizes of all transformer calls."""
    return sum(part.steps * sum(part.items) for part in recipe.passes)


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
    return cache(lambda version: Pipeline(folder_of(version)))


@pytest.fixture
def own_pipeline_of(folder_of: Callable[[Version], Path]) -> Callable[[Version], Pipeline]:
    """For a test that changes it for good."""
    return lambda version: Pipeline(folder_of(version))


@pytest.fixture(scope="session")
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

    @property
    def levels(self) -> list[float]:
        """The noise level that each call was told. The tokens of the first frame may be clean."""
        return [float(call["timestep"].max()) / 1000 for call in self]


@contextmanager
def watch(pipeline: Pipeline) -> Iterator[Forwards]:
    """Records the transformer's calls as the model itself sees them, and the scheduler's sigmas at each."""
    calls = Forwards()

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append({**kwargs, "sigmas": pipeline._with_image.scheduler.sigmas.tolist()})

    # Afterwards, since hooks before a call see what the hooks behind them have not changed yet.
    handle = pipeline._pipe.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def watching() -> Callable[[Pipeline], Any]:
    return watch


@dataclass(frozen=True)
class Take:
    """A clip, and what was seen of its making."""

    clip: Clip
    forwards: Forwards
    #: What was reported to ``step``.
    steps: list[tuple[str, float]]


@pytest.fixture(scope="session")
def takes_of(
    pipeline_of: Callable[[Version], Pipeline], shot: Callable[..., Shot]
) -> Callable[[Version], dict[RecipeName, Take]]:
    """The small shot by each recipe, the guided one first. Most tests only look at these."""

    @cache
    def make(version: Version) -> dict[RecipeName, Take]:
        return {recipe: take(pipeline_of(version), recipe) for recipe in reversed(pipeline_of(version).recipes)}

    def take(pipeline: Pipeline, recipe: RecipeName) -> Take:
        steps: list[tuple[str, float]] = []
        with watch(pipeline) as forwards:
            clip = pipeline.render(shot(recipe=recipe), lambda *step: steps.append(step))
        return Take(clip, forwards, steps)

    return make
