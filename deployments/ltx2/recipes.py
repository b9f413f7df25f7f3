"""Named recipes, expanded per checkpoint to every argument of the pipeline calls and every scheduler setting.

Nothing is left to diffusers: its defaults turn all guidance on (4 batch items a step instead of 1, even with
``guidance_scale=1``) and re-shift the sigmas of distilled checkpoints. A test compares the arguments with the
signatures of the pipelines, so a new upstream argument fails the build instead of changing the video.

What differs between the versions is in ``versions.py``, and where the numbers come from.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.versions import Row, Version

RecipeName = Literal["fast", "standard", "quality"]
#: All of them; the first that a checkpoint has is what it makes where the client names none.
RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)

#: Noise levels of distilled LTX-2; 0 follows the last. Distilled LTX-Video 0.9.7 spreads the same, rounded, over two
#: passes of two sizes; running them in one pass is our choice.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)

#: Those of the second stage. The first is also how much noise its latents get before it begins.
REFINING_SIGMAS = DISTILLED_SIGMAS[-3:]

#: Pixels of a latent along each side of a frame.
_LATENT = 32
#: Arguments that the calls without an image do not have.
IMAGE_ARGUMENTS = frozenset({"image", "image_crf"})


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The eight guidance values of LTX-2, named as the pipeline names them.

    Audio values are never 0 where video is not: the pipeline reads ``audio or video``.
    """

    guidance_scale: float
    stg_scale: float
    modality_scale: float
    guidance_rescale: float
    audio_guidance_scale: float
    audio_stg_scale: float
    audio_modality_scale: float
    audio_guidance_rescale: float


#: One forward of one batch item per step. Scales are off at 1, STG and rescale at 0.
UNGUIDED = Guidance(
    guidance_scale=1.0,
    stg_scale=0.0,
    modality_scale=1.0,
    guidance_rescale=0.0,
    audio_guidance_scale=1.0,
    audio_stg_scale=0.0,
    audio_modality_scale=1.0,
    audio_guidance_rescale=0.0,
)
#: Three forwards per step: prompt and negative prompt together, STG, isolated modalities.
GUIDED = Guidance(
    guidance_scale=3.0,
    stg_scale=1.0,
    modality_scale=3.0,
    guidance_rescale=0.7,
    audio_guidance_scale=7.0,
    audio_stg_scale=1.0,
    audio_modality_scale=3.0,
    audio_guidance_rescale=0.7,
)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One denoising from its first noise level to its last, i.e. one call of the pipeline."""

    #: The clip is made at this part of its width and height.
    divisor: Literal[1, 2]
    steps: int
    #: Batch items of each call of the transformer within a step.
    items: tuple[int, ...]
    #: Noise levels used as they are, or None to let the scheduler space and shift them by clip size.
    sigmas: tuple[float, ...] | None
    #: Every setting of ``FlowMatchEulerDiscreteScheduler``.
    scheduler: Mapping[str, Any]
    #: Every argument of the call that does not depend on the job; without an image less :data:`IMAGE_ARGUMENTS`.
    arguments: Mapping[str, Any]

    @property
    def forwards(self) -> int:
        """Calls of the transformer."""
        return self.steps * len(self.items)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to make a clip with one checkpoint."""

    name: RecipeName
    #: What is guided away from a negative prompt reads one.
    guided: bool
    #: Each goes on from the latents of the one before, doubled in width and height.
    passes: tuple[Pass, ...]


def recipes_of(*, two_stages: bool) -> tuple[RecipeName, ...]:
    """Those of a checkpoint whose version can be made in two stages, and that has an upsampler; or of another."""
    return RECIPE_NAMES if two_stages else RECIPE_NAMES[1:]


def num_frames(duration: int, fps: int) -> int:
    """Frames of a clip of ``duration`` seconds: one, and as many whole groups of 8 as fit into the duration."""
    return duration * fps // 8 * 8 + 1


def canvas(name: RecipeName, width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels at which ``name`` makes a clip of ``width`` x ``height``, whose middle that is.

    Frames are whole latents. Half of a size has to be some, too, so two stages make multiples of 64.
    """
    unit = 2 * _LATENT if name == "fast" else _LATENT
    return -(-width // unit) * unit, -(-height // unit) * unit


def expand(name: RecipeName, checkpoint: Checkpoint) -> Recipe:
    """Everything that ``name`` means for ``checkpoint``."""
    row = checkpoint.row
    passes: tuple[Pass, ...]
    if name == "fast":
        passes = (
            _distilled(checkpoint, DISTILLED_SIGMAS, divisor=2, output_type="latent"),
            _distilled(checkpoint, REFINING_SIGMAS, noise_scale=REFINING_SIGMAS[0]),
        )
    elif name == "standard":
        passes = (_distilled(checkpoint, DISTILLED_SIGMAS),)
    else:
        passes = (
            Pass(
                divisor=1,
                steps=row.guided_steps,
                items=row.guided_items,
                sigmas=None,
                scheduler=MappingProxyType(_scheduler(shifts=True)),
                arguments=MappingProxyType(_arguments(checkpoint, row.guided_steps, guided=True)),
            ),
        )
    return Recipe(name=name, guided=name == "quality", passes=passes)


def _distilled(
    checkpoint: Checkpoint, sigmas: tuple[float, ...], *, divisor: Literal[1, 2] = 1, **arguments: Any
) -> Pass:
    """One step per noise level, one item per step."""
    own = {} if checkpoint.version is Version.LTX_VIDEO else {"sigmas": sigmas}
    return Pass(
        divisor=divisor,
        steps=len(sigmas),
        items=(1,),
        sigmas=sigmas,
        scheduler=MappingProxyType(_scheduler(shifts=False)),
        arguments=MappingProxyType(_arguments(checkpoint, len(sigmas), guided=False) | own | arguments),
    )


def _arguments(checkpoint: Checkpoint, steps: int, *, guided: bool) -> dict[str, Any]:
    row = checkpoint.row
    return {
        "num_inference_steps": steps,
        "timesteps": None,
        "max_sequence_length": checkpoint.text_tokens,
        "num_videos_per_prompt": 1,
        # Prompts come as embeddings, see ``text.py``.
        "prompt": None,
        "negative_prompt": None,
        # Of the pass before, if there is one.
        "latents": None,
        "attention_kwargs": None,
        "callback_on_step_end_tensor_inputs": ("latents",),
        "decode_timestep": row.decode_timestep,
        "decode_noise_scale": row.decode_noise_scale,
        "output_type": "pt",
        "return_dict": True,
    } | (
        {"guidance_scale": 3.0 if guided else 1.0, "guidance_rescale": 0.0}
        if checkpoint.version is Version.LTX_VIDEO
        else _ltx2(row, checkpoint.layers, guided=guided)
    )


def _ltx2(row: Row, layers: int, *, guided: bool) -> dict[str, Any]:
    # A block past the end would be ignored silently, and STG would push away from an unperturbed copy.
    blocks = None if row.stg_block is None else (min(row.stg_block, layers - 1),)
    return {
        **asdict(GUIDED if guided else UNGUIDED),
        "spatio_temporal_guidance_blocks": blocks if guided else None,
        "sigmas": None,
        "use_cross_timestep": row.cross_timestep,
        "image_crf": row.image_crf,
        "motion_speed": 1.0,
        "noise_scale": 0.0,
        # Of the pass before, if there is one.
        "audio_latents": None,
        # Only read when the number of frames is left to the model.
        "min_seconds": 1.0,
        "max_seconds": 20.0,
        "enable_prompt_enhancement": False,
        "system_prompt": None,
        "prompt_max_new_tokens": None,
        "prompt_enhancement_kwargs": None,
        "prompt_enhancement_seed": 10,
    }


def _scheduler(*, shifts: bool) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": shifts,
        "shift_terminal": 0.1 if shifts else None,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "time_shift_type": "exponential",
        "invert_sigmas": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    }
