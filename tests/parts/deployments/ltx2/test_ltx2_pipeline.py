from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.faults import DeviceLost, Fault, OutOfMemory
from deployments.ltx2.pipeline import Clip, Pipeline, Shot, to_host, to_uint8
from deployments.ltx2.recipes import DISTILLED_SIGMAS, RecipeName, expand, num_frames
from deployments.ltx2.versions import Version
from tests.parts.deployments.ltx2.conftest import Take, batch_items

PipelineOf = Callable[[Version], Pipeline]
TakesOf = Callable[[Version], dict[RecipeName, Take]]
MakeShot = Callable[..., Shot]
LTX2_VERSIONS = (Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5)


def no_step(stage: str, fraction: float) -> None:
    pass


def same(one: Clip, two: Clip) -> bool:
    if one.audio is None or two.audio is None:
        return one.audio is two.audio and np.array_equal(one.frames, two.frames)
    return np.array_equal(one.frames, two.frames) and np.array_equal(one.audio, two.audio)


@pytest.mark.parametrize("version", Version)
def test_distilled_recipes_are_one_forward_of_one_item_per_step(version: Version, takes_of: TakesOf) -> None:
    takes = takes_of(version)
    assert takes["standard"].forwards.batches == [1] * 8
    if version is not Version.LTX_VIDEO:
        assert takes["fast"].forwards.batches == [1] * (8 + 3)


@pytest.mark.parametrize("version", Version)
def test_each_recipe_costs_the_batch_items_that_it_states(
    version: Version, pipeline_of: PipelineOf, takes_of: TakesOf
) -> None:
    facts, takes = pipeline_of(version).checkpoint, takes_of(version)
    assert {name: sum(take.forwards.batches) for name, take in takes.items()} == {
        name: batch_items(expand(name, facts)) for name in takes
    }


@pytest.mark.parametrize(
    ("version", "steps", "batches"),
    [
        (Version.LTX_2_0, 40, [2, 1, 1]),
        (Version.LTX_2_3, 30, [2, 1, 1]),
        (Version.LTX_2_5, 30, [2, 1, 1]),
        (Version.LTX_VIDEO, 50, [2]),
    ],
)
def test_quality_is_fully_guided(version: Version, steps: int, batches: list[int], takes_of: TakesOf) -> None:
    forwards = takes_of(version)["quality"].forwards
    assert forwards.batches == batches * steps
    if version is not Version.LTX_VIDEO:
        assert [call["spatio_temporal_guidance_blocks"] for call in forwards[:3]] == [None, (1,), None]
        assert [call["isolate_modalities"] for call in forwards[:3]] == [False, False, True]


@pytest.mark.parametrize("version", Version)
def test_distilled_sigmas_arrive_unshifted_even_after_another_recipe(version: Version, takes_of: TakesOf) -> None:
    guided, forwards = (takes_of(version)[recipe].forwards for recipe in ("quality", "standard"))
    assert forwards[0]["sigmas"] == pytest.approx([*DISTILLED_SIGMAS, 0.0], abs=1e-7)
    assert forwards.levels == pytest.approx(DISTILLED_SIGMAS, abs=1e-6)
    # The guided schedule is shifted and ends at its terminal value.
    assert guided[0]["sigmas"][0] == pytest.approx(1.0)
    assert guided[0]["sigmas"][-2:] == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(("version", "cross"), [(Version.LTX_2_0, False), (Version.LTX_2_3, True)])
def test_cross_timestep_reaches_the_transformer(version: Version, cross: bool, takes_of: TakesOf) -> None:
    assert {call["use_cross_timestep"] for call in takes_of(version)["standard"].forwards} == {cross}


@pytest.mark.parametrize("version", [Version.LTX_2_0, Version.LTX_VIDEO])
@given(duration=st.integers(1, 3), fps=st.integers(8, 30))
@settings(max_examples=5)
def test_frames_are_as_many_as_asked_for(
    version: Version, duration: int, fps: int, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue("pipeline_of")(version)
    shot: MakeShot = request.getfixturevalue("shot")
    frames = num_frames(duration, fps)
    clip = pipeline.render(shot(frames=frames, fps=fps), no_step)
    assert clip.frames.shape == (frames, 64, 64, 3)
    assert clip.frames.dtype == np.uint8


def test_a_count_that_is_not_8k_plus_1_is_noticed(pipeline_of: PipelineOf, shot: MakeShot) -> None:
    """The library would floor it silently."""
    with pytest.raises(RuntimeError, match=r"made \(9, 64, 64, 3\) instead of \(16, 64, 64, 3\)"):
        pipeline_of(Version.LTX_2_0).render(shot(frames=16), no_step)


@pytest.mark.parametrize(("version", "rate"), [(Version.LTX_2_0, 24_000), (Version.LTX_2_3, 48_000)])
def test_sound_is_as_long_as_the_picture(version: Version, rate: int, pipeline_of: PipelineOf, shot: MakeShot) -> None:
    clip = pipeline_of(version).render(shot(frames=25, fps=25), no_step)
    assert clip.audio is not None
    assert clip.audio.dtype == np.float32
    assert (clip.audio.shape[0], clip.rate) == (2, rate)
    assert clip.audio.shape[1] / rate == pytest.approx(1.0, abs=0.05)
    assert 0 < np.abs(clip.audio).max() <= 1


def test_ltx_video_makes_no_sound(takes_of: TakesOf) -> None:
    assert takes_of(Version.LTX_VIDEO)["standard"].clip.audio is None


@pytest.mark.parametrize("version", Version)
def test_the_seed_decides_every_bit(
    version: Version, pipeline_of: PipelineOf, shot: MakeShot, takes_of: TakesOf
) -> None:
    pipeline = pipeline_of(version)
    first = pipeline.render(shot(seed=2**63 - 1), no_step)
    # Somebody else draws from the global generator in between.
    torch.rand(5)
    assert same(first, pipeline.render(shot(seed=2**63 - 1), no_step))
    assert not np.array_equal(first.frames, takes_of(version)["standard"].clip.frames)


@pytest.mark.parametrize("version", [Version.LTX_2_0, Version.LTX_2_5, Version.LTX_VIDEO])
def test_prompt_and_image_matter(version: Version, pipeline_of: PipelineOf, shot: MakeShot, takes_of: TakesOf) -> None:
    pipeline = pipeline_of(version)
    frames = takes_of(version)["standard"].clip.frames
    assert not np.array_equal(frames, pipeline.render(shot(prompt="a loud party"), no_step).frames)
    turned = shot().image.rotate(90)
    assert not np.array_equal(frames, pipeline.render(shot(image=turned), no_step).frames)


@pytest.mark.parametrize("recipe", ["fast", "standard", "quality"])
def test_progress_names_the_stages_in_order_and_never_goes_back(recipe: RecipeName, takes_of: TakesOf) -> None:
    seen = takes_of(Version.LTX_2_3)[recipe].steps
    stages = [stage for stage, _ in seen]
    assert stages == ["encoding_prompt"] + ["denoising"] * (len(seen) - 2) + ["decoding_latents"]
    assert len(seen) == 2 + {"fast": 11, "standard": 8, "quality": 90}[recipe]
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(set(fractions))
    assert fractions[0] == 0
    assert fractions[-1] < 1


class Cancelled(Exception):
    pass


@pytest.mark.parametrize(
    ("version", "recipe", "step_number"),
    [
        *((version, "standard", number) for version in (Version.LTX_2_3, Version.LTX_VIDEO) for number in (0, 1, 5, 8)),
        *((Version.LTX_2_3, "fast", number) for number in (8, 9, 11)),
    ],
)
def test_cancelling_stops_at_once_and_the_next_run_is_untouched(
    version: Version,
    recipe: RecipeName,
    step_number: int,
    pipeline_of: PipelineOf,
    shot: MakeShot,
    takes_of: TakesOf,
) -> None:
    pipeline = pipeline_of(version)
    reference = takes_of(version)[recipe].clip
    # Report 0 is before encoding, the others are before each forward.
    reports: list[str] = []

    def stop(stage: str, fraction: float) -> None:
        reports.append(stage)
        if len(reports) > step_number:
            raise Cancelled

    done: list[None] = []
    handle = pipeline._pipe.transformer.register_forward_hook(lambda *_: done.append(None))
    with pytest.raises(Cancelled):
        pipeline.render(shot(recipe=recipe), stop)
    handle.remove()
    assert len(done) == max(0, step_number - 1)
    assert len(reports) == step_number + 1
    hooks = len(pipeline._pipe.transformer._forward_pre_hooks)
    assert same(reference, pipeline.render(shot(recipe=recipe), no_step))
    assert len(pipeline._pipe.transformer._forward_pre_hooks) == hooks


def test_cancelling_before_the_decode_skips_it(
    pipeline_of: PipelineOf, shot: MakeShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(Version.LTX_2_0)
    decoded: list[None] = []
    monkeypatch.setattr(pipeline._pipe.vae, "decode", lambda *_, **__: decoded.append(None))

    def stop(stage: str, fraction: float) -> None:
        if stage == "decoding_latents":
            raise Cancelled

    with pytest.raises(Cancelled):
        pipeline.render(shot(), stop)
    assert not decoded


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
    ],
)
def test_device_errors_come_out_as_faults_that_hold_no_memory(
    error: Exception, fault: type[Fault], pipeline_of: PipelineOf, shot: MakeShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(Version.LTX_2_0)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._pipe.transformer, "forward", fail)
        with pytest.raises(fault) as caught:
            pipeline.render(shot(), no_step)
    assert caught.value.__context__ is None
    assert pipeline.render(shot(), no_step).frames.any()


def test_other_errors_pass_through_but_let_go_of_the_tensors(
    pipeline_of: PipelineOf, shot: MakeShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(Version.LTX_2_0)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(pipeline._pipe.transformer, "forward", fail)
    with pytest.raises(KeyError) as caught:
        pipeline.render(shot(), no_step)
    held = [entry.frame.f_locals for entry in caught.traceback if "pipeline_ltx2_image2video" in str(entry.path)]
    assert held
    assert not any(held)


def test_nan_is_a_fault_and_not_a_black_video(
    pipeline_of: PipelineOf, shot: MakeShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(Version.LTX_2_0)
    forward = pipeline._pipe.transformer.forward

    def poison(*args: Any, **kwargs: Any) -> Any:
        video, audio = forward(*args, **kwargs)
        return video * float("nan"), audio

    monkeypatch.setattr(pipeline._pipe.transformer, "forward", poison)
    with pytest.raises(Fault) as caught:
        pipeline.render(shot(), no_step)
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize(
    ("version", "recipe"),
    [(version, "fast") for version in LTX2_VERSIONS] + [(Version.LTX_2_0, "quality"), (Version.LTX_2_3, "quality")],
)
def test_dropping_the_text_mask_changes_no_bit(
    version: Version,
    recipe: RecipeName,
    pipeline_of: PipelineOf,
    shot: MakeShot,
    takes_of: TakesOf,
    watching: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped, pipeline = takes_of(version)[recipe], pipeline_of(version)
    monkeypatch.setattr("deployments.ltx2.pipeline._without_text_mask", lambda module, args, kwargs: (args, kwargs))
    with watching(pipeline) as kept:
        assert same(dropped.clip, pipeline.render(shot(recipe=recipe), no_step))
    for call in dropped.forwards:
        assert call["encoder_attention_mask"] is call["audio_encoder_attention_mask"] is None
    for call in kept:
        assert call["encoder_attention_mask"].all()


@pytest.mark.parametrize("version", Version)
def test_bfloat16_and_tiling_as_on_a_gpu(version: Version, own_pipeline_of: PipelineOf, shot: MakeShot) -> None:
    pipeline = own_pipeline_of(version)
    pipeline._pipe.to(torch.bfloat16)
    if pipeline._upsampler is not None:
        pipeline._upsampler.to(torch.bfloat16)
    plan = pipeline.plan
    assert plan is not None
    assert pipeline._placement is not None
    pipeline._placement.plan = replace(plan, memory=replace(plan.memory, card=0))
    clip = pipeline.render(shot(width=576, recipe=pipeline.recipes[0]), no_step)
    assert clip.frames.shape == (9, 64, 576, 3)
    assert clip.frames.std() > 1
    assert clip.audio is None or clip.audio.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uint8_is_rounded_and_clamped(dtype: torch.dtype) -> None:
    levels = torch.arange(256) / 255
    frames = torch.cat([torch.tensor([-0.5, 1.5]), levels]).to(dtype).reshape(1, 1, 1, -1).expand(20, 3, 2, -1)
    pixels = to_uint8(frames)
    assert pixels.shape == (20, 2, 258, 3)
    assert pixels.dtype == torch.uint8
    expected = [0, 255, *range(256)]
    tolerance = 0 if dtype is torch.float32 else 1
    assert (pixels[19, 1, :, 2].int() - torch.tensor(expected)).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_goes_to_the_host_is_copied_once_and_whole(dtype: torch.dtype) -> None:
    values = torch.arange(9 * 6 * 8 * 3).reshape(9, 6, 8, 3).to(dtype)
    # A part of frames that are larger: nothing of the rest may be kept alive by it.
    array = to_host(values[:, 1:5, 2:6])
    assert np.array_equal(array, values[:, 1:5, 2:6].numpy())
    assert array.flags.c_contiguous
    assert not np.shares_memory(array, values.numpy())


def test_uint8_is_made_on_the_tensors_device() -> None:
    assert to_uint8(torch.empty(9, 3, 32, 64, device="meta")).device.type == "meta"
