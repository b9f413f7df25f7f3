"""Named recipes, expanded per checkpoint to every argument of the pipeline call and every scheduler setting.

Nothing is left to diffusers: its defaults turn all guidance on (4 batch items a step instead of 1, even with
``guidance_scale=1``) and re-shift the sigmas of distilled checkpoints. A test compares the arguments with the
signatures of the pipelines, so a new upstream argument fails the build instead of changing the video.

Sources: model cards of the checkpoints, ``ltx_pipelines/utils/constants.py`` of Lightricks/LTX-2 and
``configs/ltxv-*-distilled.yaml`` of Lightricks/LTX-Video.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from deployments.ltx2.checkpoint import Checkpoint, Version

RecipeName = Literal["standard", "quality"]

#: Noise levels of distilled LTX-2; 0 follows the last. Distilled LTX-Video 0.9.7 spreads the same, rounded, over two
#: passes of two sizes; running them in one pass is our choice.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)

_GUIDED_STEPS = {Version.LTX_2_0: 40, Version.LTX_2_3: 30, Version.LTX_2_5: 30, Version.LTX_VIDEO: 50}
_STG_BLOCK = {Version.LTX_2_0: 29, Version.LTX_2_3: 28, Version.LTX_2_5: 28}
#: H.264 CRF the conditioning image is degraded with, as in training.
_IMAGE_CRF = {Version.LTX_2_0: 33, Version.LTX_2_3: 33, Version.LTX_2_5: 18}


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
class Recipe:
    """One way to make a clip with one checkpoint."""

    name: RecipeName
    steps: int
    #: Calls of the transformer per step.
    forwards_per_step: int
    #: Noise levels used as they are, or None to let the scheduler space and shift them by clip size.
    sigmas: tuple[float, ...] | None
    #: Every setting of ``FlowMatchEulerDiscreteScheduler``.
    scheduler: Mapping[str, Any]
    #: Every argument of the pipeline call that does not depend on the job.
    arguments: Mapping[str, Any]


def num_frames(duration: int, fps: int) -> int:
    """Frames of a clip of ``duration`` seconds: one, and as many whole groups of 8 as fit into the duration."""
    return duration * fps // 8 * 8 + 1


def expand(name: RecipeName, checkpoint: Checkpoint) -> Recipe:
    """Everything that ``name`` means for ``checkpoint``."""
    distilled = name == "standard"
    steps = len(DISTILLED_SIGMAS) if distilled else _GUIDED_STEPS[checkpoint.version]
    arguments = _shared(steps, checkpoint)
    if checkpoint.version is Version.LTX_VIDEO:
        arguments |= _ltx_video(distilled)
        forwards = 1
    else:
        arguments |= _ltx2(distilled, checkpoint)
        forwards = 1 if distilled else 3
    return Recipe(
        name=name,
        steps=steps,
        forwards_per_step=forwards,
        sigmas=DISTILLED_SIGMAS if distilled else None,
        scheduler=MappingProxyType(_scheduler(distilled)),
        arguments=MappingProxyType(arguments),
    )


def _shared(steps: int, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "num_inference_steps": steps,
        "timesteps": None,
        "max_sequence_length": checkpoint.text_tokens,
        "num_videos_per_prompt": 1,
        "latents": None,
        "prompt_embeds": None,
        "prompt_attention_mask": None,
        "negative_prompt_embeds": None,
        "negative_prompt_attention_mask": None,
        "attention_kwargs": None,
        "callback_on_step_end_tensor_inputs": ("latents",),
        "output_type": "pt",
        "return_dict": True,
    }


def _ltx2(distilled: bool, checkpoint: Checkpoint) -> dict[str, Any]:
    # A block past the end would be ignored silently, and STG would push away from an unperturbed copy.
    block = min(_STG_BLOCK[checkpoint.version], checkpoint.layers - 1)
    return {
        **asdict(UNGUIDED if distilled else GUIDED),
        "spatio_temporal_guidance_blocks": None if distilled else (block,),
        "sigmas": DISTILLED_SIGMAS if distilled else None,
        "use_cross_timestep": checkpoint.version is not Version.LTX_2_0,
        "image_crf": _IMAGE_CRF[checkpoint.version],
        "motion_speed": 1.0,
        "noise_scale": 0.0,
        "audio_latents": None,
        # The convolutional VAE of all LTX-2 checkpoints takes no timestep.
        "decode_timestep": 0.0,
        "decode_noise_scale": None,
        # Only read when the number of frames is left to the model.
        "min_seconds": 1.0,
        "max_seconds": 20.0,
        "enable_prompt_enhancement": False,
        "system_prompt": None,
        "prompt_max_new_tokens": None,
        "prompt_enhancement_kwargs": None,
        "prompt_enhancement_seed": 10,
    }


def _ltx_video(distilled: bool) -> dict[str, Any]:
    return {
        "guidance_scale": 1.0 if distilled else 3.0,
        "guidance_rescale": 0.0,
        # Read by the VAEs since 0.9.1, which do the last bit of denoising themselves.
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
    }


def _scheduler(distilled: bool) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": not distilled,
        "shift_terminal": None if distilled else 0.1,
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
