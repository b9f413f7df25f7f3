"""The recipe ``fast``, against what diffusers' own classes make when they are called as its documentation says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
)
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from PIL import Image

from deployments.ltx2 import checkpoint
from deployments.ltx2.pipeline import Clip, Pipeline, Shot, to_uint8
from deployments.ltx2.recipes import RecipeName
from deployments.ltx2.versions import VERSIONS, Version
from deployments.weights import CheckpointError
from tests.parts.deployments.ltx2.conftest import Take

LTX2_VERSIONS = (Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5)
FolderOf = Callable[[Version], Path]
PipelineOf = Callable[[Version], Pipeline]
TakesOf = Callable[[Version], dict[RecipeName, Take]]
MakeShot = Callable[..., Shot]


def no_step(stage: str, fraction: float) -> None:
    pass


def plain(folder: Path, version: Version, shot: Shot) -> Clip:
    """Three calls: half size, upsampler, whole size. Prompts as text, components as saved, everything else by hand."""
    family = LTX2Pipeline if shot.image is None else LTX2ImageToVideoPipeline
    pipe = family.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, use_dynamic_shifting=False, shift_terminal=None
    )
    upsampler = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler", local_files_only=True)
    shared: dict[str, Any] = {
        "prompt": shot.prompt,
        "num_frames": shot.frames,
        "frame_rate": float(shot.fps),
        "max_sequence_length": 64,
        "use_cross_timestep": version is not Version.LTX_2_0,
        "generator": torch.Generator().manual_seed(shot.seed),
        "return_dict": False,
        "guidance_scale": 1.0,
        "audio_guidance_scale": 1.0,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_rescale": 0.0,
    } | ({} if shot.image is None else {"image": shot.image})
    latents, audio_latents = pipe(
        width=shot.width // 2,
        height=shot.height // 2,
        num_inference_steps=8,
        sigmas=DISTILLED_SIGMA_VALUES,
        output_type="latent",
        **shared,
    )
    (latents,) = LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)(
        latents=latents, output_type="latent", return_dict=False
    )
    frames, audio = pipe(
        width=shot.width,
        height=shot.height,
        latents=latents,
        audio_latents=audio_latents,
        num_inference_steps=3,
        sigmas=STAGE_2_DISTILLED_SIGMA_VALUES,
        noise_scale=STAGE_2_DISTILLED_SIGMA_VALUES[0],
        output_type="pt",
        **shared,
    )
    return Clip(
        frames=to_uint8(frames[0]).numpy(), audio=audio[0].numpy(), rate=pipe.vocoder.config.output_sampling_rate
    )


@pytest.mark.parametrize("version", LTX2_VERSIONS)
@pytest.mark.parametrize("with_image", [True, False])
def test_it_is_what_the_three_documented_calls_make_bit_by_bit(
    version: Version, with_image: bool, folder_of: FolderOf, pipeline_of: PipelineOf, shot: MakeShot
) -> None:
    asked = shot(recipe="fast", width=128, height=64, **({} if with_image else {"image": None}))
    ours, theirs = pipeline_of(version).render(asked, no_step), plain(folder_of(version), version, asked)
    assert np.array_equal(ours.frames, theirs.frames)
    assert ours.audio is not None
    assert theirs.audio is not None
    assert np.array_equal(ours.audio, theirs.audio)
    assert ours.rate == theirs.rate == VERSIONS[version].sound_rate


@pytest.mark.parametrize("version", LTX2_VERSIONS)
def test_the_second_stage_begins_at_its_noise_level_on_four_times_the_tokens(
    version: Version, takes_of: TakesOf
) -> None:
    forwards = takes_of(version)["fast"].forwards
    assert forwards.levels == pytest.approx([*DISTILLED_SIGMA_VALUES, *STAGE_2_DISTILLED_SIGMA_VALUES], abs=1e-6)
    assert forwards[8]["sigmas"] == pytest.approx([*STAGE_2_DISTILLED_SIGMA_VALUES, 0.0], abs=1e-7)
    # 64x64 pixels and 9 frames are 2x2 latents of 2.
    assert [call["hidden_states"].shape[1] for call in forwards] == [2] * 8 + [8] * 3
    assert len({call["audio_hidden_states"].shape for call in forwards}) == 1


def test_the_second_stage_goes_on_from_the_latents_of_the_first(
    pipeline_of: PipelineOf, shot: MakeShot, watching: Any
) -> None:
    """What it begins with is noise and what was normalised of the first's, in the proportion of its noise level."""
    pipeline = pipeline_of(Version.LTX_2_3)
    pipe, doubled = pipeline._pipe, []
    handle = pipeline._upsampler.register_forward_hook(lambda module, args, output: doubled.append(output))
    with watching(pipeline) as forwards:
        pipeline.render(shot(recipe="fast", width=256, height=256, frames=17), no_step)
    handle.remove()
    level = STAGE_2_DISTILLED_SIGMA_VALUES[0]
    (latents,) = doubled
    mean, std = (getattr(pipe.vae, name).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    clean = ((latents - mean) / std).flatten(2).transpose(1, 2)
    begun = forwards[8]["hidden_states"]
    tokens = 8 * 8
    # The first frame is kept as it is.
    assert torch.allclose(begun[:, :tokens], clean[:, :tokens], atol=1e-5)
    noise = (begun - (1 - level) * clean)[:, tokens:] / level
    assert float(noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_text_is_encoded_once_and_nothing_is_decoded_or_spoken_in_between(
    own_pipeline_of: PipelineOf, shot: MakeShot
) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_3)
    pipe, calls = pipeline._pipe, []
    for name in ("text_encoder", "connectors", "transformer", "vocoder"):
        getattr(pipe, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    for name in ("vae", "audio_vae"):
        getattr(pipe, name).decoder.register_forward_hook(lambda *_, name=name: calls.append(name))
    pipeline._upsampler.register_forward_hook(lambda *_: calls.append("upsampler"))
    pipeline.render(shot(recipe="fast"), no_step)
    begin = ["text_encoder", "connectors", *["transformer"] * 8, "upsampler", *["transformer"] * 3]
    assert calls == [*begin, "vae", "audio_vae", "vocoder"]


@pytest.mark.parametrize(
    ("recipe", "width", "height", "wide", "high"),
    [
        ("fast", 96, 64, 128, 64),
        ("fast", 64, 96, 64, 128),
        ("fast", 160, 96, 192, 128),
        ("fast", 130, 72, 192, 128),
        ("standard", 66, 72, 96, 96),
        ("standard", 64, 90, 64, 96),
    ],
)
def test_a_size_that_is_no_whole_latents_is_made_larger_and_its_middle_cut_out(
    recipe: RecipeName, width: int, height: int, wide: int, high: int, pipeline_of: PipelineOf, shot: MakeShot
) -> None:
    pipeline = pipeline_of(Version.LTX_2_3)
    asked = shot(recipe=recipe, width=width, height=height)
    clip = pipeline.render(asked, no_step)
    assert clip.frames.shape == (9, height, width, 3)
    # The middle of the larger clip, whose first frame has the one asked for in its middle.
    top, left = (high - height) // 2, (wide - width) // 2
    beside = ((top, high - height - top), (left, wide - width - left), (0, 0))
    mirrored = Image.fromarray(np.pad(np.asarray(asked.image), beside, mode="reflect"))
    whole = pipeline.render(replace(asked, width=wide, height=high, image=mirrored), no_step).frames
    assert np.array_equal(clip.frames, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("version", "recipe"),
    [*((version, "fast") for version in LTX2_VERSIONS), (Version.LTX_VIDEO, "quality")],
)
def test_without_an_image_the_prompt_alone_decides(
    version: Version, recipe: RecipeName, pipeline_of: PipelineOf, shot: MakeShot, takes_of: TakesOf
) -> None:
    pipeline = pipeline_of(version)
    clip, other = (
        pipeline.render(shot(image=None, recipe=recipe, prompt=prompt), no_step)
        for prompt in ("a quiet street at dawn", "a loud party")
    )
    assert clip.frames.shape == (9, 64, 64, 3)
    assert (clip.audio is not None) is pipeline.checkpoint.has_audio
    assert not np.array_equal(clip.frames, other.frames)
    assert not np.array_equal(clip.frames, takes_of(version)[recipe].clip.frames)


def test_without_an_upsampler_there_is_no_fast(pipeline_of: PipelineOf, shot: MakeShot) -> None:
    whole = pipeline_of(Version.LTX_2_3)
    assert whole.recipes == ("fast", "standard", "quality")
    pipeline = Pipeline.of(whole._pipe, whole.checkpoint)
    assert pipeline.recipes == ("standard", "quality")
    assert pipeline.render(shot(), no_step).frames.any()


def test_ready_components_make_the_same_clip_and_stay_as_they_are(
    folder_of: FolderOf, takes_of: TakesOf, shot: MakeShot
) -> None:
    folder = folder_of(Version.LTX_2_3)
    pipe = LTX2Pipeline.from_pretrained(folder, local_files_only=True)
    before = dict(pipe.components)
    upsampler = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler", local_files_only=True)
    pipeline = Pipeline.of(pipe, checkpoint.read(folder), upsampler)
    clip = pipeline.render(shot(recipe="fast"), no_step)
    assert np.array_equal(clip.frames, takes_of(Version.LTX_2_3)["fast"].clip.frames)
    assert {name: id(part) for name, part in pipe.components.items()} == {
        name: id(part) for name, part in before.items()
    }
    assert not pipe.transformer._forward_pre_hooks


def test_an_upsampler_for_another_model_is_refused(pipeline_of: PipelineOf) -> None:
    whole = pipeline_of(Version.LTX_2_3)
    other = LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1)
    with pytest.raises(CheckpointError, match="latents of 4 channels, and the checkpoint's have 8"):
        Pipeline.of(whole._pipe, whole.checkpoint, other)


def test_an_upsampler_of_another_folder_is_taken_instead(
    folder_of: FolderOf, tmp_path: Path, takes_of: TakesOf, shot: MakeShot
) -> None:
    torch.manual_seed(5)
    other = LTX2LatentUpsamplerModel(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
    other.save_pretrained(tmp_path)
    clip = Pipeline(folder_of(Version.LTX_2_3), tmp_path).render(shot(recipe="fast"), no_step)
    assert not np.array_equal(clip.frames, takes_of(Version.LTX_2_3)["fast"].clip.frames)
