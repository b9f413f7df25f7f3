"""What a client may ask of LTX-2. Imported on the head too: pydantic only."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from deployments.engine import InputSpec, ModelSpec, Params
from deployments.ltx2 import checkpoint, options
from deployments.ltx2.activations import size_of
from deployments.ltx2.memory import on_paper
from deployments.ltx2.recipes import RecipeName, canvas, num_frames
from deployments.media.formats import names

#: Names the folder of a latent upsampler, for a checkpoint that has none or to have another.
UPSAMPLER_VARIABLE = "LTX2_UPSAMPLER"
DEFAULT_PROMPT = "A smooth cinematic video"
#: Longest on offer, as made: five seconds at 1920x1088 and 24 fps. What of that a card has the memory for is in
#: ``memory.py``.
MAX_VIDEO_PIXELS = 1920 * 1088 * 121
#: Width and height where the client names none.
DEFAULT_SIZE = (1024, 576)
#: How many times as long as ``fast`` a recipe takes at the same size: 1.54, 2.57 and 37.6 PFLOP of denoising for five
#: seconds of 1024x576 with LTX-2.3. Two stages do 8 of their 11 forwards on a quarter of the tokens.
EFFORT: Mapping[RecipeName, float] = MappingProxyType({"fast": 1.0, "standard": 1.7, "quality": 25.0})
DEFAULT_NEGATIVE_PROMPT = "blurry, low quality, distorted"


class LTX2Params(Params):
    """Everything but the image."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {
                    "anyOf": [
                        {
                            "required": ["width", "height"],
                            "properties": {"width": {"type": "integer"}, "height": {"type": "integer"}},
                        },
                        {"properties": {"width": {"type": "null"}, "height": {"type": "null"}}},
                    ]
                }
            ]
        }
    )

    prompt: str = Field(
        DEFAULT_PROMPT,
        min_length=1,
        max_length=4000,
        description="What should happen in the video.",
        examples=["She looks up and smiles, her hair moving in the wind"],
    )
    negative_prompt: str = Field(
        DEFAULT_NEGATIVE_PROMPT,
        max_length=4000,
        description="What to avoid. Only recipes with guidance look at it.",
    )
    duration: int = Field(5, ge=1, le=10, description="Seconds. The video has `duration*fps//8*8+1` frames.")
    fps: int = Field(24, ge=8, le=60, description="Frames per second.")
    width: int | None = Field(
        None,
        ge=64,
        le=1920,
        multiple_of=2,
        description="Pixels; default 1024 (smaller for test weights). What is no multiple of 32 is made as the next "
        "one, and its middle cut out.",
    )
    height: int | None = Field(
        None,
        ge=64,
        le=1920,
        multiple_of=2,
        validate_default=True,
        description="Pixels; default 576 (smaller for test weights). Goes with `width`.",
    )
    recipe: RecipeName | None = Field(
        None,
        description="`fast`: 8 distilled steps at half the size and 3 at the whole. `standard`: 8 at the whole, 1.7 "
        "times slower. `quality`: 30 to 50 guided steps, 25 times slower. Default `fast` where the checkpoint has its "
        "upsampler, else `standard`.",
    )
    fit: Literal["crop", "letterbox"] = Field(
        "crop", description="How an image of another aspect ratio is made to fit. It is never stretched."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same video; default random.")

    @field_validator("height")
    @classmethod
    def _is_on_offer(cls, height: int | None, info: ValidationInfo) -> int | None:
        # Absent where that field itself was wrong, which is reported anyway.
        if "width" not in info.data or not {"duration", "fps"} <= info.data.keys():
            return height
        width, frames = info.data["width"], num_frames(info.data["duration"], info.data["fps"])
        if (width is None) != (height is None):
            raise ValueError("give width and height together, or neither")
        asked = width or DEFAULT_SIZE[0], height or DEFAULT_SIZE[1]
        # As every recipe makes at least.
        wide, high = canvas("standard", *asked)
        if wide * high * frames > MAX_VIDEO_PIXELS:
            most = MAX_VIDEO_PIXELS // (wide * high)
            text = f"{frames} frames of {asked[0]}x{asked[1]} are more than is made; at most {most} of this size are"
            raise ValueError(text)
        return height


def size(params: LTX2Params) -> int:
    """As the memory plan counts it; where no recipe is named, as for ``fast``, which may make a little more to cut."""
    width, height = params.width or DEFAULT_SIZE[0], params.height or DEFAULT_SIZE[1]
    return size_of(params.recipe or "fast", width, height, num_frames(params.duration, params.fps))


def fitting(params: LTX2Params, most: int) -> str:
    """The longest clip of this width and height whose :func:`size` is ``most``."""
    width, height = params.width or DEFAULT_SIZE[0], params.height or DEFAULT_SIZE[1]
    lengths = (seconds for seconds in range(10, 0, -1) if size(params.model_copy(update={"duration": seconds})) <= most)
    seconds = next(lengths, None)
    if seconds is None:
        return f"not even a second of {width}x{height} at {params.fps} frames a second fits: ask for a smaller one"
    return f"at most {seconds} s of {width}x{height} at {params.fps} frames a second do"


def effort(params: LTX2Params) -> float:
    """By pixels of all frames and by recipe; the first second of a video costs as much as the tenth.

    Where none is named, as for ``fast``: the head does not know what the checkpoint has.
    """
    recipe = params.recipe or "fast"
    width, height = canvas(recipe, params.width or DEFAULT_SIZE[0], params.height or DEFAULT_SIZE[1])
    pixels = width * height * num_frames(params.duration, params.fps)
    usual = DEFAULT_SIZE[0] * DEFAULT_SIZE[1] * num_frames(5, 24)
    return pixels / usual * EFFORT[recipe]


def _check_upsampler(folder: Path) -> None:
    checkpoint.check_upsampler(folder)


SPEC = ModelSpec(
    name="ltx2",
    title="LTX-2 image or text to video",
    description=(
        "Animates a still image as a prompt describes it, or makes a video of the prompt alone; with sound where the "
        "checkpoint has it."
    ),
    params=LTX2Params,
    inputs=(
        InputSpec(
            name="image",
            kinds=("image",),
            description=f"First frame: {names('image')}.",
            max_bytes=32 * 1024 * 1024,
            optional=True,
        ),
    ),
    timeout_s=1800,
    # By `fast` on an A100: 10 s for 1.54 PFLOP of denoising, and about 5 s for text, decoding and copying.
    expected_run_s=15,
    effort=effort,
    size=size,
    size_unit="width x height x (frames + 7)",
    size_field="duration",
    fitting=fitting,
    variant=lambda params: params.recipe or "",
    variant_field="recipe",
    on_paper=on_paper,
    engine="deployments.ltx2.engine:LTX2Engine",
    weights_variable="LTX2_MODEL_PATH",
    weights_checks={"LTX2_MODEL_PATH": checkpoint.check, UPSAMPLER_VARIABLE: _check_upsampler},
    variables=(options.COMPILE, options.ATTENTION, options.FP8),
)
