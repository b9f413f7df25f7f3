"""Each arrangement of a plan carried out on a tiny checkpoint: where its parts are, and that it makes the same clip."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.faults import OutOfMemory
from deployments.ltx2 import placement
from deployments.ltx2.activations import TILES
from deployments.ltx2.memory import LARGEST, ArrangementName, Plan
from deployments.ltx2.options import Bucket, SpeedOptions
from deployments.ltx2.pipeline import Clip, Pipeline, Shot
from deployments.ltx2.recipes import RecipeName
from deployments.ltx2.versions import Version
from deployments.stage import Stage
from deployments.weights import CheckpointError

CPU = torch.device("cpu")
MakeShot = Callable[..., Shot]
Planned = Callable[..., Pipeline]


def no_step(stage: Stage, fraction: float) -> None:
    pass


def same(one: Clip, other: Clip) -> bool:
    assert one.audio is not None
    assert other.audio is not None
    return np.array_equal(one.frames, other.frames) and np.array_equal(one.audio, other.audio)


@pytest.fixture
def arranged(folder_of: Callable[[Version], Path], monkeypatch: pytest.MonkeyPatch) -> Planned:
    """The tiny LTX-2.3, loaded by the real loader as if the plan had come out as this arrangement."""
    usual = placement.planned

    def load(arrangement: ArrangementName, **changes: Any) -> Pipeline:
        def planned(*arguments: Any) -> Plan:
            return replace(usual(*arguments), arrangement=arrangement, **changes)

        monkeypatch.setattr(placement, "planned", planned)
        return Pipeline(folder_of(Version.LTX_2_3))

    return load


@pytest.fixture(scope="module")
def clip(pipeline_of: Callable[[Version], Pipeline], shot: MakeShot) -> Clip:
    """What it has to make."""
    return pipeline_of(Version.LTX_2_3).render(shot(recipe="fast"), no_step)


def fail_once(module: Any) -> None:
    def fail(module: Any, args: Any) -> None:
        handle.remove()
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = module.register_forward_pre_hook(fail)


def hooks_of(module: Any) -> set[str]:
    """Names of diffusers' hooks anywhere in it."""
    return {
        name for each in module.modules() if hasattr(each, "_diffusers_hook") for name in each._diffusers_hook.hooks
    }


def test_text_that_is_streamed_changes_no_bit(arranged: Planned, clip: Clip, shot: MakeShot) -> None:
    pipeline = arranged("text streamed")
    assert same(pipeline.render(shot(recipe="fast"), no_step), clip)
    pipe = pipeline._pipe
    assert hooks_of(pipe.text_encoder) == hooks_of(pipe.connectors) == {"group_offloading"}
    assert hooks_of(pipe.transformer) == set()


def test_a_streamed_transformer_computes_what_one_in_eight_bits_does(
    arranged: Planned, clip: Clip, shot: MakeShot
) -> None:
    stored, streamed = arranged("fp8"), arranged("streamed")
    clips = [pipeline.render(shot(recipe="fast"), no_step) for pipeline in (stored, streamed)]
    assert same(*clips)
    # Eight bits are not as many as there were, and noise of a transformer that is wrong differs everywhere.
    assert not same(clips[0], clip)
    assert np.abs(clips[0].frames.astype(int) - clip.frames.astype(int)).mean() < 10
    # Out of memory in the middle of a forward leaves nothing behind.
    fail_once(streamed._pipe.transformer.transformer_blocks[1].attn1)
    with pytest.raises(OutOfMemory):
        streamed.render(shot(recipe="fast"), no_step)
    assert same(streamed.render(shot(recipe="fast"), no_step), clips[0])
    assert hooks_of(stored._pipe.transformer) == {"layerwise_casting"}
    weights = list(stored._pipe.transformer.named_parameters())
    eight = sum(each.numel() for _, each in weights if each.dtype == torch.float8_e4m3fn)
    assert eight > 0.9 * sum(each.numel() for _, each in weights)
    assert all(each.dtype != torch.float8_e4m3fn for name, each in weights if "norm" in name)
    assert hooks_of(streamed._pipe.transformer) >= {"layerwise_casting", "group_offloading"}


def test_what_stays_off_the_card_is_never_loaded_onto_it(
    pipeline_of: Callable[[Version], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is a device of another name, which nothing is ever put on."""
    made: list[tuple[str, set[str]]] = []

    class Made:
        def __init__(self, parts: dict[str, Any]) -> None:
            self.__dict__ |= parts

    plan = pipeline_of(Version.LTX_2_3).plan
    assert plan is not None
    whole = {name: torch.nn.Linear(1, 1) for name in plan.weights} | {"tokenizer": None}
    monkeypatch.setattr(placement, "_store_in_eight_bits", lambda transformer: None)

    def make(device_map: str, **given: Any) -> Made:
        made.append((device_map, whole.keys() - given.keys() - {"latent_upsampler"}))
        return Made(whole | given)

    placement.load(make, replace(plan, arrangement="streamed"), torch.device("meta"))
    assert made == [
        ("cpu", {"transformer"}),
        ("cpu", {"text_encoder"}),
        ("cpu", {"connectors"}),
        ("meta", {"vae", "audio_vae", "vocoder", "tokenizer"}),
    ]


def test_a_job_that_needs_the_room_has_the_text_encoder_moved_out(
    arranged: Planned, clip: Clip, shot: MakeShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = arranged("resident", parks=True)
    moves: list[tuple[str, str]] = []
    names = {id(pipeline._pipe.text_encoder): "encoder", id(pipeline._pipe.connectors): "connectors"}
    move = torch.nn.Module.to

    def watched(module: Any, *arguments: Any, **named: Any) -> Any:
        if id(module) in names:
            moves.append((names[id(module)], str(arguments[0])))
        return move(module, *arguments, **named)

    for kind in (type(pipeline._pipe.text_encoder), type(pipeline._pipe.connectors)):
        monkeypatch.setattr(kind, "to", watched)
    # All is the same device here: what it is told is looked at.
    assert pipeline._placement is not None
    pipeline._placement._device = torch.device("cpu", 0)
    assert same(pipeline.render(shot(recipe="fast"), no_step), clip)
    back = [("encoder", "cpu:0"), ("connectors", "cpu:0")]
    assert moves == back
    plan = pipeline._placement.plan
    pipeline._placement.plan = replace(plan, memory=replace(plan.memory, card=0))
    # The prompt is known, so nothing has to come back.
    assert same(pipeline.render(shot(recipe="fast"), no_step), clip)
    assert moves == [*back, ("encoder", "cpu"), ("connectors", "cpu")]


@pytest.mark.parametrize(
    ("options", "largest", "said"),
    [
        (SpeedOptions(fp8=True), LARGEST, "LTX2_FP8 and LTX2_COMPILE are for a card that holds the transformer"),
        (SpeedOptions(compiled=(Bucket(1024, 576, 121),)), 10**6, "1024x576x121 does not fit this card's memory"),
    ],
)
def test_a_speed_option_that_the_plan_has_no_room_for_ends_the_start(
    options: SpeedOptions,
    largest: int,
    said: str,
    pipeline_of: Callable[[Version], Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = pipeline_of(Version.LTX_2_3)
    assert pipeline.plan is not None
    arrangement: ArrangementName = "fp8" if options.fp8 else "text streamed"
    monkeypatch.setattr(pipeline, "plan", replace(pipeline.plan, arrangement=arrangement, largest={"fast": largest}))
    with pytest.raises(CheckpointError, match=said):
        pipeline.speed_up(options)


@pytest.mark.parametrize("recipe", ["fast", "standard"])
def test_a_plan_that_is_chosen_on_a_cpu_keeps_all_where_it_is(
    recipe: RecipeName, pipeline_of: Callable[[Version], Pipeline]
) -> None:
    plan = pipeline_of(Version.LTX_2_3).plan
    assert plan is not None
    assert (plan.arrangement, plan.parks) == ("resident", False)
    assert plan.fits(recipe, 1024, 576, 25)
    assert plan.tile(recipe, 1024, 576, 25) is None


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("width", "height"), [(928, 64), (64, 928), (480, 544)])
def test_no_tile_is_too_small_for_the_decoder(
    width: int, height: int, tile: int, pipeline_of: Callable[[Version], Pipeline]
) -> None:
    """The reflecting padding of 2.0's fails on a tile of one latent."""
    vae = pipeline_of(Version.LTX_2_0)._pipe.vae
    placement.tile(vae, width, height, tile)
    latents = torch.zeros(1, vae.config.latent_channels, 1, height // 32, width // 32)
    try:
        with torch.inference_mode():
            assert vae.decode(latents, None, return_dict=False)[0].shape == (1, 3, 1, height, width)
    finally:
        placement.tile(vae, width, height, None)


def test_memory_of_a_cpu_is_the_hosts() -> None:
    found = placement.free(CPU)
    assert found.shared
    assert 0 < found.host == found.card - found.used
