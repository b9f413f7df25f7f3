"""Compiled layers, attention back ends and fp8, on the tiny checkpoint."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch._dynamo.utils import counters

from deployments.ltx2 import engine, speed
from deployments.ltx2.options import Bucket, SpeedOptions
from deployments.ltx2.pipeline import Pipeline, Shot
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError


def no_step(stage: str, fraction: float) -> None:
    pass


@pytest.fixture
def _compiler_as_before() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler_as_before")
def test_compiled_clips_are_the_same_and_other_sizes_compile_nothing(
    own_pipeline_of: Callable[[Version], Pipeline],
    pipeline_of: Callable[[Version], Pipeline],
    shot: Callable[..., Shot],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the compiler itself makes of a graph is torch's; it takes minutes.
    monkeypatch.setattr(speed, "BACKEND", "eager")
    small, other = shot(recipe="standard"), shot(recipe="standard", width=96)
    expected = [pipeline_of(Version.LTX_VIDEO).render(each, no_step) for each in (small, other)]
    fast = own_pipeline_of(Version.LTX_VIDEO)
    options = SpeedOptions(compiled=(Bucket(64, 64, 9),))
    fast.speed_up(options)
    rendered: list[Bucket] = []

    def render(bucket: Bucket) -> None:
        rendered.append(bucket)
        fast.render(engine._sized(small, bucket), no_step)

    counters.clear()
    speed.warmed_up(options, render)
    assert rendered == [Bucket(64, 64, 9)] * 2
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    for each, clip in zip((small, other), expected, strict=True):
        made = fast.render(each, no_step)
        assert np.abs(made.frames.astype(int) - clip.frames).max() <= 1
    assert counters["stats"]["unique_graphs"] == compiled
    # The replica renders in other threads than the one in which it started.
    torch.compiler.set_stance("fail_on_recompile")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(fast.render, small, no_step).result()


def test_nothing_is_compiled_unless_asked(own_pipeline_of: Callable[[Version], Pipeline]) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_0)
    pipeline.speed_up(SpeedOptions())
    speed.warmed_up(SpeedOptions(), lambda bucket: pytest.fail("nothing is to be rendered"))
    assert not any(module._compiled_call_impl for module in pipeline._pipe.transformer.modules())


def test_the_transformer_attends_as_it_was_told_and_nothing_else(
    own_pipeline_of: Callable[[Version], Pipeline],
    pipeline_of: Callable[[Version], Pipeline],
    shot: Callable[..., Shot],
) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_0)
    before, _ = _AttentionBackendRegistry.get_active_backend()
    pipeline.speed_up(SpeedOptions(attention="_native_math"))
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    block = pipeline._pipe.transformer.transformer_blocks[0]
    assert block.attn1.processor._attention_backend == AttentionBackendName._NATIVE_MATH
    made, expected = (
        each.render(shot(recipe="standard"), no_step).frames for each in (pipeline, pipeline_of(Version.LTX_2_0))
    )
    assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("name", "why"), [("flash", "flash-attn"), ("quick", "must be one of")])
def test_a_back_end_that_is_not_there_ends_the_start(
    name: str, why: str, own_pipeline_of: Callable[[Version], Pipeline]
) -> None:
    with pytest.raises(CheckpointError, match=rf"^LTX2_ATTENTION={name}: .*{why}"):
        own_pipeline_of(Version.LTX_VIDEO).speed_up(SpeedOptions(attention=name))


def test_fp8_without_its_package_or_card_ends_the_start_before_anything_loads(
    folder_of: Callable[[Version], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTX2_FP8", "1")
    monkeypatch.setenv("LTX2_MODEL_PATH", str(folder_of(Version.LTX_2_0)))
    monkeypatch.setattr(engine, "_load", lambda: pytest.fail("nothing is to be loaded"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="torchao"):
        engine.LTX2Engine()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(CheckpointError, match=r"this machine has 8\.0"):
        speed.require(SpeedOptions(fp8=True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    speed.require(SpeedOptions(fp8=True))


def test_fp8_is_for_the_layers_products_alone(
    own_pipeline_of: Callable[[Version], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Callable[[Any, str], bool]]] = []
    torchao = SimpleNamespace(
        Float8DynamicActivationFloat8WeightConfig=lambda granularity: granularity,
        PerRow=lambda: "by row",
        quantize_=lambda module, config, filter_fn: asked.append((config, filter_fn)),
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=torchao))
    monkeypatch.setitem(sys.modules, "torchao.quantization", torchao)
    pipeline = own_pipeline_of(Version.LTX_2_0)
    pipeline.speed_up(SpeedOptions(fp8=True))
    ((config, chosen),) = asked
    assert config == "by row"
    modules = dict(pipeline._pipe.transformer.named_modules())
    taken = {name for name, module in modules.items() if chosen(module, name)}
    assert "transformer_blocks.0.attn1.to_q" in taken
    assert all(name.startswith("transformer_blocks.") for name in taken)
    assert not chosen(modules["proj_out"], "proj_out")
    assert not chosen(torch.nn.Linear(24, 16), "transformer_blocks.0.attn1.to_q")
