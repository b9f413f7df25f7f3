import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from hypothesis import given
from hypothesis import strategies as st

from deployments.ltx2 import recipes
from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.pipeline import Pipeline
from deployments.ltx2.recipes import IMAGE_ARGUMENTS, Pass, Recipe, RecipeName, canvas, expand, num_frames
from deployments.ltx2.versions import VERSIONS, Version
from tests.parts.deployments.ltx2.conftest import batch_items

LTX2_VERSIONS = (Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5)
RECIPES = recipes.RECIPE_NAMES
#: All passes of all recipes that there are.
PASSES = [(version, name) for version in Version for name in RECIPES if name != "fast" or VERSIONS[version].two_stages]

#: Arguments of the pipeline call that :meth:`Pipeline.render` fills per job; the recipe has all others.
JOB_ARGUMENTS = frozenset(
    {
        "image",
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
        "width",
        "height",
        "num_frames",
        "frame_rate",
        "generator",
        "callback_on_step_end",
    }
)
EIGHT = (
    "guidance_scale",
    "stg_scale",
    "modality_scale",
    "guidance_rescale",
    "audio_guidance_scale",
    "audio_stg_scale",
    "audio_modality_scale",
    "audio_guidance_rescale",
)


def full(version: Version, layers: int = 48) -> Checkpoint:
    return Checkpoint(version=version, layers=layers, text_tokens=1024, random_weights=False)


def only(recipe: Recipe) -> Pass:
    (part,) = recipe.passes
    return part


def guidance(part: Pass) -> tuple[float, ...]:
    return tuple(part.arguments[name] for name in EIGHT)


@pytest.mark.parametrize(("version", "name"), PASSES)
def test_no_argument_is_left_to_the_library(version: Version, name: RecipeName) -> None:
    with_image, without = (
        (LTXImageToVideoPipeline, LTXPipeline)
        if version is Version.LTX_VIDEO
        else (LTX2ImageToVideoPipeline, LTX2Pipeline)
    )
    for part in expand(name, full(version)).passes:
        given = set(part.arguments) | JOB_ARGUMENTS
        assert given == set(inspect.signature(with_image.__call__).parameters) - {"self"}
        assert given - IMAGE_ARGUMENTS == set(inspect.signature(without.__call__).parameters) - {"self"}
        assert not set(part.arguments) & JOB_ARGUMENTS


@pytest.mark.parametrize("name", RECIPES)
def test_no_scheduler_setting_is_left_to_the_library(name: RecipeName) -> None:
    settings = set(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters) - {"self"}
    for part in expand(name, full(Version.LTX_2_3)).passes:
        assert set(part.scheduler) == settings


@pytest.mark.parametrize("version", LTX2_VERSIONS)
@pytest.mark.parametrize("name", ["fast", "standard"])
def test_distilled_recipes_switch_every_guidance_off(version: Version, name: RecipeName) -> None:
    recipe = expand(name, full(version))
    assert not recipe.guided
    for part in recipe.passes:
        assert guidance(part) == (1, 0, 1, 0, 1, 0, 1, 0)
        assert part.items == (1,)
        assert part.steps == part.arguments["num_inference_steps"] == len(part.arguments["sigmas"])


@pytest.mark.parametrize("version", LTX2_VERSIONS)
def test_fast_is_the_published_two_stages(version: Version) -> None:
    first, second = expand("fast", full(version)).passes
    assert (first.divisor, second.divisor) == (2, 1)
    assert list(first.arguments["sigmas"]) == list(first.sigmas or ()) == DISTILLED_SIGMA_VALUES
    assert list(second.arguments["sigmas"]) == list(second.sigmas or ()) == STAGE_2_DISTILLED_SIGMA_VALUES
    assert (first.arguments["noise_scale"], second.arguments["noise_scale"]) == (0, 0.909375)
    # Latents as they are: nothing is decoded in between, the vocoder runs once.
    assert (first.arguments["output_type"], second.arguments["output_type"]) == ("latent", "pt")


@pytest.mark.parametrize(
    ("version", "items"),
    [
        (Version.LTX_2_0, {"fast": 11, "standard": 8, "quality": 160}),
        (Version.LTX_2_3, {"fast": 11, "standard": 8, "quality": 120}),
        (Version.LTX_2_5, {"fast": 11, "standard": 8, "quality": 120}),
        (Version.LTX_VIDEO, {"standard": 8, "quality": 100}),
    ],
)
def test_batch_items_of_a_clip(version: Version, items: dict[RecipeName, int]) -> None:
    assert {name: batch_items(expand(name, full(version))) for name in items} == items


@pytest.mark.parametrize(
    ("version", "steps", "block"), [(Version.LTX_2_0, 40, 29), (Version.LTX_2_3, 30, 28), (Version.LTX_2_5, 30, 28)]
)
def test_quality_is_the_published_guided_setting(version: Version, steps: int, block: int) -> None:
    recipe = expand("quality", full(version))
    part = only(recipe)
    assert recipe.guided
    assert guidance(part) == (3, 1, 3, 0.7, 7, 1, 3, 0.7)
    assert part.arguments["spatio_temporal_guidance_blocks"] == (block,)
    assert part.steps == part.arguments["num_inference_steps"] == steps


def test_a_perturbed_block_exists_in_a_shallow_model() -> None:
    part = only(expand("quality", full(Version.LTX_2_0, layers=2)))
    assert part.arguments["spatio_temporal_guidance_blocks"] == (1,)


@pytest.mark.parametrize(
    ("version", "cross", "crf"),
    [(Version.LTX_2_0, False, 33), (Version.LTX_2_3, True, 33), (Version.LTX_2_5, True, 18)],
)
@pytest.mark.parametrize("name", RECIPES)
def test_each_generation_gets_its_own_conditioning(version: Version, cross: bool, crf: int, name: RecipeName) -> None:
    for part in expand(name, full(version)).passes:
        assert (part.arguments["use_cross_timestep"], part.arguments["image_crf"]) == (cross, crf)


def test_ltx_video_is_unguided_when_distilled_and_guided_otherwise() -> None:
    standard, quality = (only(expand(name, full(Version.LTX_VIDEO))) for name in ("standard", "quality"))
    assert (standard.arguments["guidance_scale"], standard.steps) == (1, 8)
    assert (quality.arguments["guidance_scale"], quality.steps) == (3, 50)
    for part in (standard, quality):
        assert (part.arguments["decode_timestep"], part.arguments["decode_noise_scale"]) == (0.05, 0.025)


def test_audio_guidance_is_never_zero_where_video_is_not() -> None:
    """The pipeline reads ``audio or video``, so such a zero would mean the video's value."""
    for values in (recipes.UNGUIDED, recipes.GUIDED):
        for name in EIGHT[:4]:
            assert getattr(values, f"audio_{name}") or not getattr(values, name)


@pytest.mark.parametrize("version", Version)
def test_the_table_of_versions_agrees_with_the_checkpoints(
    version: Version, pipeline_of: Callable[[Version], Pipeline]
) -> None:
    row, pipe = VERSIONS[version], pipeline_of(version)._pipe
    vocoder = getattr(pipe, "vocoder", None)
    assert row.sound_rate == (vocoder and vocoder.config.output_sampling_rate)
    assert bool(row.decode_timestep) is bool(pipe.vae.config.timestep_conditioning)


@given(duration=st.integers(1, 10), fps=st.integers(8, 60))
def test_num_frames_is_8k_plus_1_and_as_long_as_asked(duration: int, fps: int) -> None:
    frames = num_frames(duration, fps)
    assert frames % 8 == 1
    assert frames - 1 <= duration * fps < frames + 7


@given(name=st.sampled_from(RECIPES), width=st.integers(64, 1920), height=st.integers(64, 1920))
def test_a_canvas_is_the_least_that_the_recipe_can_make(name: RecipeName, width: int, height: int) -> None:
    """Every pass makes whole latents of 32 pixels, the first of ``fast`` at half the size."""
    unit = 32 * max(part.divisor for part in expand(name, full(Version.LTX_2_3)).passes)
    for made, asked in zip(canvas(name, width, height), (width, height), strict=True):
        assert made % unit == 0
        assert asked <= made < asked + unit


def test_recipes_and_recognition_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None;"
        "import deployments.ltx2.recipes, deployments.ltx2.checkpoint, deployments.ltx2.spec"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
