"""All that differs between the generations of LTX-2, and LTX-Video: one row each. No torch: the head reads it too.

Sources: model cards of the checkpoints, ``ltx_pipelines/utils/constants.py`` of Lightricks/LTX-2 and
``configs/ltxv-*.yaml`` of Lightricks/LTX-Video.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Version(StrEnum):
    """Generations that need different arguments for the same clip."""

    LTX_2_0 = "2.0"
    LTX_2_3 = "2.3"
    LTX_2_5 = "2.5"
    #: All of LTX-Video 0.9.x: T5 text encoder, no sound.
    LTX_VIDEO = "ltx-video"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one generation was trained with and ships. What all of LTX-2 have in common is the default."""

    #: Hz of its vocoder; None: it makes no sound.
    sound_rate: int | None
    #: Tokens that prompts are padded to, if the tokenizer allows as many.
    text_tokens: int = 1024
    #: Steps of the guided recipe.
    guided_steps: int
    #: Batch items of each transformer forward in a guided step: prompt and negative prompt together, then one with a
    #: perturbed block, then one with picture and sound isolated.
    guided_items: tuple[int, ...] = (2, 1, 1)
    #: Block that spatio-temporal guidance skips; None: the generation has no such guidance.
    stg_block: int | None
    #: Whether picture and sound are told of each other's noise level.
    cross_timestep: bool
    #: H.264 CRF that the conditioning image is degraded with, as in training; None: not at all.
    image_crf: int | None
    #: Noise level at which the VAE decodes and the noise added for it. The convolutional VAE of LTX-2 takes neither.
    decode_timestep: float = 0.0
    decode_noise_scale: float | None = None
    #: Whether the scheduler in its folder shifts noise levels by clip size: right for ``quality``, wrong for others.
    ships_shifting: bool
    #: Whether two stages can be joined by a latent upsampler. That of LTX-Video wants a pipeline of its own.
    two_stages: bool = True


VERSIONS: Mapping[Version, Row] = MappingProxyType(
    {
        Version.LTX_2_0: Row(
            sound_rate=24_000,
            guided_steps=40,
            stg_block=29,
            cross_timestep=False,
            image_crf=33,
            ships_shifting=True,
        ),
        Version.LTX_2_3: Row(
            sound_rate=48_000,
            guided_steps=30,
            stg_block=28,
            cross_timestep=True,
            image_crf=33,
            ships_shifting=True,
        ),
        Version.LTX_2_5: Row(
            sound_rate=48_000,
            guided_steps=30,
            stg_block=28,
            cross_timestep=True,
            image_crf=18,
            ships_shifting=False,
        ),
        Version.LTX_VIDEO: Row(
            sound_rate=None,
            text_tokens=128,
            guided_steps=50,
            guided_items=(2,),
            stg_block=None,
            cross_timestep=False,
            image_crf=None,
            # Since 0.9.1 its VAE does the last bit of denoising itself.
            decode_timestep=0.05,
            decode_noise_scale=0.025,
            ships_shifting=True,
            two_stages=False,
        ),
    }
)
