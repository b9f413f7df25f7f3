"""The benchmark of a full-size model on a card, run on one that is small enough for any machine: the same code."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deployments.ltx2 import checkpoint, memory, tiny, upsampler
from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.pipeline import Pipeline
from deployments.ltx2.recipes import RECIPE_NAMES, RecipeName
from deployments.ltx2.spec import DEFAULT_NEGATIVE_PROMPT
from deployments.ltx2.versions import VERSIONS, Version
from tests.benchmarks.floor import CARDS, Format, Model, on_paper
from tests.benchmarks.full_size import FULL
from tests.benchmarks.stages import Bench, Plan

WANTED = Format(width=64, height=64, frames=9, fps=24)


Small = tuple[Checkpoint, dict[str, Any]]


@pytest.fixture(autouse=True)
def _two_guided_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of 30, which say nothing more."""
    rows = {version: replace(row, guided_steps=2) for version, row in VERSIONS.items()}
    monkeypatch.setattr(checkpoint, "VERSIONS", rows)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Facts and components of the tiny checkpoint, as those of a full-size one are, in bfloat16 as on a card."""
    torch.set_num_threads(1)
    folder = tiny.ensure(tmp_path_factory.mktemp("tiny"), Version.LTX_2_3)
    parts = Pipeline(folder)._pipe.components
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    joint = upsampler.load(folder, torch.device("cpu"), torch.float32)
    modules = {**modules, "latent_upsampler": joint}
    return checkpoint.read(folder), {name: each.to(torch.bfloat16) for name, each in modules.items()}


@pytest.fixture(scope="module")
def model(small: Small) -> Model:
    facts, modules = small
    return Model(facts, {name: copy.deepcopy(each).to("meta") for name, each in modules.items()})


def bench_of(small: Small, model: Model) -> Bench:
    # `standard` is half of `fast`.
    return Bench(Plan(recipes=("fast", "quality"), wanted=WANTED, depth=FULL, warm_ups=0, runs=1), *small, model)


def test_both_makers_make_the_same_clip_and_ours_reads_its_prompt_once(
    small: Small, model: Model, tmp_path: Path
) -> None:
    results = bench_of(small, model).run(tmp_path)
    for figures in results.values():
        assert figures["psnr_db"] == math.inf
        for maker in ("diffusers", "ours"):
            assert figures[maker]["seconds"].keys() >= {"text", "first frame", "denoise", "decode", "encode"}
    # The encoder and the connectors, for each prompt that either reads.
    assert results["fast"]["diffusers"]["calls"]["text"] == 4
    assert results["fast"]["ours"]["calls"]["text"] == 2
    # 8 steps and 3, by both.
    assert [results["fast"][maker]["calls"]["denoise"] for maker in ("diffusers", "ours")] == [11, 11]


def test_beside_the_peak_stands_what_is_planned_for_the_card(small: Small, model: Model) -> None:
    bench = bench_of(small, model)
    assert bench._tiled("quality") is None
    bench.memory = memory.paper(Version.LTX_2_3, 4096, 80)
    planned = bench._tiled("quality")
    assert planned is not None
    assert 60 < planned < 80


def test_what_is_measured_is_taken_off_the_models_again(small: Small, model: Model, tmp_path: Path) -> None:
    before = {name: dict(vars(module)) for name, module in small[1].items()}
    bench = bench_of(small, model)
    with bench._timeline.watching():
        assert "forward" in vars(small[1]["transformer"])
    assert {name: vars(module).keys() for name, module in small[1].items()} == {n: v.keys() for n, v in before.items()}


@pytest.mark.parametrize("recipe", ["fast", "quality"])
def test_what_is_counted_on_paper_is_what_a_run_computes(recipe: RecipeName, small: Small, model: Model) -> None:
    bench = bench_of(small, model)
    # The negative prompt is read once, and never again.
    bench._pipeline._text.arguments(DEFAULT_NEGATIVE_PROMPT, None, torch.device("cpu"))
    # Attention in the open, which the counter knows on every processor.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench._pipeline.render(bench._shot(recipe), lambda stage, fraction: None)
    stages = model.stages(recipe, WANTED)
    assert sum(stage.work.flops for stage in stages.values()) == counter.get_total_flops()


def test_a_floor_is_the_sum_of_its_stages_on_every_card(model: Model) -> None:
    figures, lines = on_paper(model, WANTED)
    for recipe in RECIPE_NAMES:
        stages = dict(figures["recipes"][recipe])
        whole = stages.pop("all")
        assert whole["tflop"] == pytest.approx(sum(each["tflop"] for each in stages.values()), abs=0.05)
        for card in CARDS:
            fused, eager = zip(*(each["seconds"][card.name] for each in stages.values()), strict=True)
            assert whole["seconds"][card.name] == pytest.approx((sum(fused), sum(eager)))
            # Nothing is faster for being cut into kernels.
            assert all(one <= other for one, other in zip(fused, eager, strict=True))
    assert sum(line.startswith("| fast") for line in lines) == 6
