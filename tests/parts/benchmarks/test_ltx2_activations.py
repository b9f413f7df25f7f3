"""The memory plan's arithmetic against bytes counted on models of full width; ``make memory-table`` counts more."""

from functools import cache
from typing import Any

import pytest

from deployments.ltx2 import activations
from deployments.ltx2.activations import decoding, denoising, size_of
from deployments.ltx2.parts import PUBLISHED
from deployments.ltx2.recipes import RecipeName
from deployments.ltx2.versions import Version
from tests.benchmarks import memory as table
from tests.benchmarks.activations import Clip, Counted
from tests.benchmarks.full_size import Depth, components
from tests.benchmarks.live_bytes import bytes_of


@pytest.fixture(scope="module")
def counted() -> Any:
    return cache(Counted)


def close(planned: int, count: int) -> bool:
    return abs(planned - count) <= 0.1 * count


@pytest.mark.parametrize(
    ("version", "width", "height", "frames", "items"),
    [(Version.LTX_2_0, 1920, 1088, 121, 1), (Version.LTX_2_3, 512, 320, 49, 2)],
)
def test_denoising_is_within_10_percent_of_the_count(
    version: Version, width: int, height: int, frames: int, items: int, counted: Any
) -> None:
    needs = activations.of(version, 4096)
    recipe: RecipeName = "quality" if items == 2 else "standard"
    planned = denoising(needs, version, recipe, size_of(recipe, width, height, frames))
    assert close(planned, counted(version).call(Clip(width=width, height=height, frames=frames, items=items)))


@pytest.mark.parametrize(
    ("version", "width", "height", "frames", "tile"),
    [(Version.LTX_2_0, 1024, 576, 121, None), (Version.LTX_2_3, 768, 448, 121, 512)],
)
def test_decoding_at_once_and_in_tiles_is_within_10_percent_of_the_count(
    version: Version, width: int, height: int, frames: int, tile: int | None, counted: Any
) -> None:
    planned = decoding(activations.of(version, 4096), width, height, frames, tile)
    assert close(planned, counted(version).decoding(Clip(width=width, height=height, frames=frames), tile))


def test_upsampler_and_image_are_within_10_percent_of_the_count(counted: Any) -> None:
    needs, count = activations.of(Version.LTX_2_3, 4096), counted(Version.LTX_2_3)
    clip = Clip(width=768, height=512, frames=49)
    assert close(needs.picture * clip.width * clip.height, count.picture(clip))
    assert close(needs.upsampled * clip.tokens, count.upsampled(clip))


def test_the_size_of_a_published_transformer_is_that_of_the_full_size_model() -> None:
    """``make memory-table`` looks at all of all checkpoints."""
    published = PUBLISHED[Version.LTX_2_3, 4096]["transformer"]
    one, two = (
        components(Version.LTX_2_3, depth=Depth(transformer=layers), only={"transformer"})["transformer"]
        for layers in (1, 2)
    )
    assert published.size == bytes_of(one) + 47 * (bytes_of(two) - bytes_of(one))
    assert published.pair == sum(sorted((each.nbytes for each in one.parameters()), reverse=True)[:2])


def test_the_page_of_cards_says_what_the_code_does() -> None:
    """``make memory-table`` writes it."""
    assert table.PAGE.read_text() == table.page()
