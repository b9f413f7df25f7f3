import inspect
import subprocess
import sys

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2ImageToVideoPipeline, LTXImageToVideoPipeline
from hypothesis import given
from hypothesis import strategies as st

from deployments.ltx2 import recipes
from deployments.ltx2.checkpoint import Checkpoint, Version
from deployments.ltx2.pipeline import JOB_ARGUMENTS
from deployments.ltx2.recipes import Recipe, RecipeName, expand, num_frames

LTX2_VERSIONS = (Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5)
RECIPES: tuple[RecipeName, ...] = ("standard", "quality")

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


def guidance(recipe: Recipe) -> tuple[float, ...]:
    return tuple(recipe.arguments[name] for name in EIGHT)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("version", Version)
def test_no_argument_is_left_to_the_library(version: Version, name: RecipeName) -> None:
    family = LTXImageToVideoPipeline if version is Version.LTX_VIDEO else LTX2ImageToVideoPipeline
    recipe = expand(name, full(version))
    assert set(recipe.arguments) | JOB_ARGUMENTS == set(inspect.signature(family.__call__).parameters) - {"self"}
    assert not set(recipe.arguments) & JOB_ARGUMENTS


@pytest.mark.parametrize("name", RECIPES)
def test_no_scheduler_setting_is_left_to_the_library(name: RecipeName) -> None:
    settings = set(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters) - {"self"}
    assert set(expand(name, full(Version.LTX_2_3)).scheduler) == settings


@pytest.mark.parametrize("version", LTX2_VERSIONS)
def test_standard_switches_every_guidance_off(version: Version) -> None:
    recipe = expand("standard", full(version))
    assert guidance(recipe) == (1, 0, 1, 0, 1, 0, 1, 0)
    assert (recipe.steps, recipe.forwards_per_step) == (8, 1)


@pytest.mark.parametrize(
    ("version", "steps", "block"), [(Version.LTX_2_0, 40, 29), (Version.LTX_2_3, 30, 28), (Version.LTX_2_5, 30, 28)]
)
def test_quality_is_the_published_guided_setting(version: Version, steps: int, block: int) -> None:
    recipe = expand("quality", full(version))
    assert guidance(recipe) == (3, 1, 3, 0.7, 7, 1, 3, 0.7)
    assert recipe.arguments["spatio_temporal_guidance_blocks"] == (block,)
    assert recipe.steps == recipe.arguments["num_inference_steps"] == steps


def test_a_perturbed_block_exists_in_a_shallow_model() -> None:
    recipe = expand("quality", full(Version.LTX_2_0, layers=2))
    assert recipe.arguments["spatio_temporal_guidance_blocks"] == (1,)


@pytest.mark.parametrize(
    ("version", "cross", "crf"),
    [(Version.LTX_2_0, False, 33), (Version.LTX_2_3, True, 33), (Version.LTX_2_5, True, 18)],
)
@pytest.mark.parametrize("name", RECIPES)
def test_each_generation_gets_its_own_conditioning(version: Version, cross: bool, crf: int, name: RecipeName) -> None:
    arguments = expand(name, full(version)).arguments
    assert (arguments["use_cross_timestep"], arguments["image_crf"]) == (cross, crf)


def test_ltx_video_is_unguided_when_distilled_and_guided_otherwise() -> None:
    standard, quality = (expand(name, full(Version.LTX_VIDEO)) for name in RECIPES)
    assert (standard.arguments["guidance_scale"], standard.steps) == (1, 8)
    assert (quality.arguments["guidance_scale"], quality.steps) == (3, 50)
    assert standard.arguments["decode_timestep"] == quality.arguments["decode_timestep"] == 0.05


def test_audio_guidance_is_never_zero_where_video_is_not() -> None:
    """The pipeline reads ``audio or video``, so such a zero would mean the video's value."""
    for values in (recipes.UNGUIDED, recipes.GUIDED):
        for name in EIGHT[:4]:
            assert getattr(values, f"audio_{name}") or not getattr(values, name)


@given(duration=st.integers(1, 10), fps=st.integers(8, 60))
def test_num_frames_is_8k_plus_1_and_as_long_as_asked(duration: int, fps: int) -> None:
    frames = num_frames(duration, fps)
    assert frames % 8 == 1
    assert frames - 1 <= duration * fps < frames + 7


def test_recipes_and_recognition_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None;"
        "import deployments.ltx2.recipes, deployments.ltx2.checkpoint, deployments.ltx2.spec"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
