"""The same clip by diffusers alone, called as its documentation calls it: what ours is measured against.

Arguments and noise levels are those of our recipes, so both do the same arithmetic. What diffusers does besides is
left as it is: each call encodes its prompt, and frames come to the host as float32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LTX2LatentUpsamplePipeline
from diffusers.utils import encode_video
from numpy.typing import NDArray

from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.pipeline import Shot
from deployments.ltx2.recipes import expand
from deployments.ltx2.schedule import scheduler_of


@dataclass(frozen=True)
class Film:
    """What diffusers hands back."""

    #: float32 in 0..1, shape (frames, height, width, 3).
    frames: NDArray[np.float32]
    #: float32 in -1..1, shape (2, samples).
    audio: torch.Tensor


class Plain:
    """diffusers' pipelines over components that are on the device."""

    def __init__(self, pipe: Any, facts: Checkpoint, upsampler: Any) -> None:
        self._pipe = pipe
        self._facts = facts
        self._join = LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)

    def render(self, shot: Shot) -> Film:
        """Make the clip. Its size has to be one that the recipe can make."""
        recipe = expand(shot.recipe, self._facts)
        generator = torch.Generator(self._pipe.device).manual_seed(shot.seed)
        before: dict[str, Any] = {}
        for part in recipe.passes:
            last = part is recipe.passes[-1]
            self._pipe.scheduler = scheduler_of(part)
            made = self._pipe(
                **{
                    **part.arguments,
                    "image": shot.image,
                    "prompt": shot.prompt,
                    "negative_prompt": shot.negative_prompt if recipe.guided else None,
                    "width": shot.width // part.divisor,
                    "height": shot.height // part.divisor,
                    "num_frames": shot.frames,
                    "frame_rate": float(shot.fps),
                    "generator": generator,
                    "output_type": "np" if last else "latent",
                    **before,
                }
            )
            if not last:
                latents = made.frames.to(self._join.latent_upsampler.dtype)
                (joined,) = self._join(latents=latents, output_type="latent", return_dict=False)
                before = {"latents": joined, "audio_latents": made.audio}
        return Film(frames=made.frames[0], audio=made.audio[0].float().cpu())

    def encode(self, film: Film, fps: int, path: Path) -> None:
        """Write the mp4."""
        rate = self._pipe.vocoder.config.output_sampling_rate
        encode_video(film.frames, fps, str(path), film.audio, rate)
