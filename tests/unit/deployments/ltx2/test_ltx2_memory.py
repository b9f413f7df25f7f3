"""The plan of the memory: what it promises holds for every card, every checkpoint and every clip."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.ltx2 import activations, memory, spec
from deployments.ltx2.activations import TILES, TOKEN, size_of
from deployments.ltx2.memory import ARRANGEMENTS, ENOUGH, FILL, GIB, LARGEST, Memory, Plan, on_paper, plan
from deployments.ltx2.parts import PUBLISHED, Part
from deployments.ltx2.recipes import RECIPE_NAMES, RecipeName, canvas, num_frames
from deployments.ltx2.spec import MAX_VIDEO_PIXELS, LTX2Params
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError

CHECKPOINTS = st.sampled_from(list(PUBLISHED))
CARDS = st.integers(8 * GIB, 192 * GIB)
HOSTS = st.integers(4 * GIB, 512 * GIB)
SIDES = st.integers(32, 960).map(lambda half: half * 2)
FRAMES = st.integers(1, 75).map(lambda groups: 8 * groups + 1)
RECIPES = st.sampled_from(RECIPE_NAMES)


def planned(checkpoint: tuple[Version, int], card: int, host: int = 1024 * GIB, used: int = GIB // 2) -> Plan | None:
    """None where nothing fits."""
    version, width = checkpoint
    try:
        return plan(version, PUBLISHED[checkpoint], Memory(card=card, used=used, host=host), width=width)
    except CheckpointError:
        return None


@given(CHECKPOINTS, CARDS, HOSTS, RECIPES, SIDES, SIDES, FRAMES)
def test_no_clip_that_fits_fills_more_than_92_percent_of_a_card(
    checkpoint: tuple[Version, int], card: int, host: int, recipe: RecipeName, width: int, height: int, frames: int
) -> None:
    made = planned(checkpoint, card, host)
    if made is None or not made.fits(recipe, width, height, frames):
        return
    assert max(made.peaks(recipe, width, height, frames).values()) + made.memory.used <= FILL * card
    assert made.host <= host


@given(CHECKPOINTS, CARDS, HOSTS)
def test_the_largest_size_fits_and_the_next_does_not(checkpoint: tuple[Version, int], card: int, host: int) -> None:
    made = planned(checkpoint, card, host)
    if made is None:
        return
    room = made.memory.room - made.kept(parked=made.parks)

    def fits(recipe: RecipeName, size: int) -> bool:
        needed = memory._host(made.arrangement, made.weights, size, parks=made.parks)
        return needed <= host and memory._most(made.activations, made.version, recipe, size) <= room

    for recipe, largest in made.largest.items():
        assert largest % TOKEN == 0
        assert not largest or fits(recipe, largest)
        assert largest == LARGEST or not fits(recipe, largest + TOKEN)


@given(CHECKPOINTS, CARDS, st.integers(0, 64 * GIB), HOSTS)
def test_a_larger_card_is_never_slower_and_makes_no_less_in_the_same_way(
    checkpoint: tuple[Version, int], card: int, more: int, host: int
) -> None:
    small, large = planned(checkpoint, card, host), planned(checkpoint, card + more, host)
    if small is None:
        return
    assert large is not None
    default = RECIPE_NAMES[0]
    if small.largest[default] >= ENOUGH:
        assert large.largest[default] >= ENOUGH
        assert ARRANGEMENTS.index(large.arrangement) <= ARRANGEMENTS.index(small.arrangement)
    else:
        assert large.largest[default] >= small.largest[default]
    if large.arrangement == small.arrangement and large.parks == small.parks:
        assert all(large.largest[recipe] >= largest for recipe, largest in small.largest.items())


@given(CHECKPOINTS, CARDS, HOSTS, st.integers(0, 64 * GIB))
def test_a_host_with_more_memory_makes_no_plan_worse(
    checkpoint: tuple[Version, int], card: int, host: int, more: int
) -> None:
    poor, rich = planned(checkpoint, card, host), planned(checkpoint, card, host + more)
    if poor is None:
        return
    assert rich is not None
    assert rich.largest[RECIPE_NAMES[0]] >= min(ENOUGH, poor.largest[RECIPE_NAMES[0]])


@given(SIDES, SIDES, FRAMES, st.sampled_from(list(PUBLISHED)))
def test_what_suffices_to_decode_a_size_suffices_for_each_shape_of_it(
    width: int, height: int, frames: int, checkpoint: tuple[Version, int]
) -> None:
    needs = activations.of(*checkpoint)
    at_best = min(activations.decoding(needs, width, height, frames, tile) for tile in (None, *TILES))
    assert at_best <= activations.decoding_at_most(needs, size_of("standard", width, height, frames))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("side", range(64, 1921, 32))
def test_tiles_overlap_cover_the_picture_and_are_two_latents_at_the_least(side: int, tile: int) -> None:
    step = activations.stride(side, tile)
    assert side // 32 % (step // 32) != 1
    assert tile - step >= 32
    lengths = [min(tile, side - begin) for begin in range(0, side, step)]
    assert side <= tile or sum(lengths) <= TILES[tile] * side


@pytest.mark.parametrize("version", [Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5])
@pytest.mark.parametrize(
    ("gib", "arrangement"), [(24, "streamed"), (40, "fp8"), (48, "fp8"), (64, "text streamed"), (80, "resident")]
)
def test_the_cards_that_people_rent_make_five_seconds_of_720p(version: Version, gib: int, arrangement: str) -> None:
    made = memory.paper(version, 4096, gib)
    assert made.arrangement == arrangement
    assert made.fits("fast", 1280, 704, 121)
    assert made.fits("standard", 1024, 576, 121)
    assert set(made.largest) == set(RECIPE_NAMES)


def test_an_80_gb_card_makes_all_that_may_be_asked_and_moves_the_text_encoder_only_for_large_clips() -> None:
    made = memory.paper(Version.LTX_2_3, 4096, 80)
    assert dict(made.largest) == dict.fromkeys(RECIPE_NAMES, LARGEST)
    assert made.parks
    assert not made.parked("fast", 1024, 576, 121)
    assert made.parked("fast", 1920, 1088, 121)
    # Beside the text encoder as large as that leaves room for; in its place at once.
    assert not made.parked("fast", 1280, 704, 121)
    assert made.tile("fast", 1280, 704, 121) == 512
    assert made.tile("fast", 1024, 576, 121) is None
    assert made.tile("fast", 1920, 1088, 121) is None


def test_the_head_is_told_what_every_checkpoint_can_make() -> None:
    assert on_paper(8) == {}
    assert dict(on_paper(80)) == dict.fromkeys(RECIPE_NAMES, LARGEST)
    assert on_paper(40)["fast"] == min(
        memory.paper(version, 4096, 40).largest["fast"] for version in Version if version is not Version.LTX_VIDEO
    )


def test_without_host_memory_nothing_is_moved_there() -> None:
    resident = planned((Version.LTX_2_3, 4096), 80 * GIB, host=16 * GIB)
    assert resident is not None
    assert (resident.arrangement, resident.parks) == ("resident", False)
    assert 0 < resident.largest["fast"] < LARGEST
    assert planned((Version.LTX_2_3, 4096), 40 * GIB, host=16 * GIB) is None


def test_a_card_that_is_too_small_is_told_what_is_needed() -> None:
    with pytest.raises(
        CheckpointError, match=r"needs a card of \d+ GiB or more and \d+ GiB of host memory; here are 4"
    ):
        plan(Version.LTX_2_3, PUBLISHED[Version.LTX_2_3, 4096], Memory(card=4 * GIB, host=8 * GIB), width=4096)


def test_on_a_cpu_the_card_is_the_host_and_weights_stay() -> None:
    tiny = {name: Part(10**6, 10**5) for name in PUBLISHED[Version.LTX_2_3, 4096]}
    made = plan(Version.LTX_2_3, tiny, Memory(card=8 * GIB, used=2 * GIB, host=6 * GIB, shared=True), width=48)
    assert (made.arrangement, made.parks) == ("resident", False)
    assert made.fits("fast", 320, 192, 121)
    assert not made.fits("fast", 1920, 1088, 121)


@given(RECIPES, SIDES, SIDES, FRAMES)
def test_a_size_is_that_of_the_tokens_that_are_made(recipe: RecipeName, width: int, height: int, frames: int) -> None:
    made_width, made_height = canvas(recipe, width, height)
    tokens = (made_width // 32) * (made_height // 32) * ((frames - 1) // 8 + 1)
    assert size_of(recipe, width, height, frames) == tokens * TOKEN


def test_the_table_names_the_arrangement_the_weights_and_every_phase() -> None:
    told = str(memory.paper(Version.LTX_2_3, 4096, 40))
    assert told.startswith("LTX-2.3 fp8: ")
    for word in (
        "transformer 35.4",
        "denoise, stage 2",
        "upsample",
        "decode",
        "vocoder",
        "image encode",
        "1920x1088x121",
    ):
        assert word in told


def test_everything_that_the_parameters_allow_fits_where_the_largest_does() -> None:
    lengths = sorted({num_frames(seconds, fps) for seconds in range(1, 11) for fps in range(8, 61)})
    assert (lengths[0], lengths[-1]) == (activations.MIN_FRAMES, activations.MAX_FRAMES)
    for width in range(64, 1921, 32):
        for height in range(64, width + 1, 32):
            most = max((each for each in lengths if width * height * each <= MAX_VIDEO_PIXELS), default=None)
            assert most is None or size_of("fast", width, height, most) <= LARGEST, (width, height, most)


@given(width=SIDES, height=SIDES, duration=st.integers(1, 10), fps=st.integers(8, 60))
def test_a_size_in_between_is_taken_and_counts_as_the_next_that_is_made(
    width: int, height: int, duration: int, fps: int
) -> None:
    """So that what holds above for those that are made holds for all."""
    next_wide, next_high = (-(-side // 32) * 32 for side in (width, height))
    asked, made = (
        {"width": wide, "height": high, "duration": duration, "fps": fps}
        for wide, high in ((width, height), (next_wide, next_high))
    )
    try:
        larger = LTX2Params.model_validate(made)
    except ValidationError as error:
        (fault,) = error.errors()
        with pytest.raises(ValidationError, match=re.escape(f"of {width}x{height} are more than is made")) as refused:
            LTX2Params.model_validate(asked)
        # As many frames are offered.
        assert refused.value.errors()[0]["msg"].split(";")[1] == fault["msg"].split(";")[1]
        return
    smaller = LTX2Params.model_validate(asked)
    assert spec.size(smaller) == spec.size(larger)
    assert spec.effort(smaller) == spec.effort(larger)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("width", 62, "greater than or equal to 64"),
        ("height", 1922, "less than or equal to 1920"),
        ("width", 721, "a multiple of 2"),
        ("height", 719, "a multiple of 2"),
    ],
)
def test_odd_sizes_and_those_beyond_the_limits_are_refused(field: str, value: int, said: str) -> None:
    LTX2Params.model_validate({"width": 64, "height": 1920})
    with pytest.raises(ValidationError, match=said):
        LTX2Params.model_validate({"width": 720, "height": 720, field: value})
