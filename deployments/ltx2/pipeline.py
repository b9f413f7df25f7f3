"""A loaded checkpoint: image and prompt in, frames and sound out. The only module that touches diffusers' pipelines."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import LTX2ImageToVideoPipeline, LTXImageToVideoPipeline
from numpy.typing import NDArray
from PIL import Image

from deployments import accelerator
from deployments.engine import Step
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.ltx2 import checkpoint
from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.recipes import Recipe, RecipeName, expand
from deployments.ltx2.schedule import scheduler_of
from deployments.stage import Stage
from deployments.weights import CheckpointError

#: Arguments of the pipeline call that :meth:`Pipeline.render` fills per job; the recipe has all others.
JOB_ARGUMENTS = frozenset(
    {
        "image",
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "num_frames",
        "frame_rate",
        "generator",
        "callback_on_step_end",
    }
)

#: Share of the run that is over when denoising begins and when it ends.
_DENOISE_FROM, _DENOISE_TO = 0.02, 0.93
#: Frames converted to uint8 at a time, which bounds the float32 copy.
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One clip to make."""

    prompt: str
    #: Read by guided recipes only.
    negative_prompt: str
    #: First frame, RGB, already ``width`` x ``height``; None: the prompt alone says what is seen.
    image: Image.Image | None
    #: Pixels, multiples of 32.
    width: int
    height: int
    #: 8k+1.
    frames: int
    fps: int
    recipe: RecipeName
    seed: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a shot became, on the host."""

    #: uint8 RGB, shape (frames, height, width, 3).
    frames: NDArray[np.uint8]
    #: float32 in -1..1, shape (2, samples), about as long as the video; None where the model makes no sound.
    audio: NDArray[np.float32] | None
    #: Hz; 0 without sound.
    rate: int


class Pipeline:
    """Loads ``folder`` onto the device and renders one shot at a time.

    Raises :class:`CheckpointError` when the folder is not a complete diffusers checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoint: Checkpoint = checkpoint.read(folder)
        self._device = accelerator.device()
        self._pipe = _load(folder, self.checkpoint, self._device)
        self._recipes = {name: expand(name, self.checkpoint) for name in ("standard", "quality")}
        self._schedulers = {name: scheduler_of(recipe) for name, recipe in self._recipes.items()}

    def render(self, shot: Shot, step: Step) -> Clip:
        """Make the clip, reporting its three stages. What ``step`` raises passes through.

        Raises ``OutOfMemory`` and ``DeviceLost``; the pipeline is usable afterwards in all other cases and after the
        former. The same shot gives the same bits on the same device.
        """
        try:
            return self._render(shot, step)
        except BaseException as error:
            # The traceback would keep the latents and embeddings of the pipeline's frames on the device.
            traceback.clear_frames(error.__traceback__)
            fault = accelerator.fault_of(error)
            if fault is None:
                raise
        # Outside of the handler, so that no __context__ keeps the original alive.
        raise fault

    @torch.inference_mode()
    def _render(self, shot: Shot, step: Step) -> Clip:
        recipe = self._recipes[shot.recipe]
        self._pipe.scheduler = self._schedulers[shot.recipe]
        if self._pipe.vae.use_tiling:
            self._pipe.vae.enable_tiling(
                tile_sample_stride_height=tile_stride(shot.height), tile_sample_stride_width=tile_stride(shot.width)
            )
        step(Stage.ENCODING_PROMPT, 0.0)
        # The VAE of LTX-Video draws noise of its own from the global generator.
        torch.manual_seed(shot.seed)
        meter = _Meter(recipe, step)
        handle = self._pipe.transformer.register_forward_pre_hook(meter.forward)
        try:
            output = self._pipe(
                image=shot.image,
                prompt=shot.prompt,
                negative_prompt=shot.negative_prompt,
                width=shot.width,
                height=shot.height,
                num_frames=shot.frames,
                frame_rate=float(shot.fps),
                generator=torch.Generator(self._device).manual_seed(shot.seed),
                callback_on_step_end=meter.step_end,
                **recipe.arguments,
            )
        finally:
            handle.remove()
        frames = to_uint8(output.frames[0])
        expected = (shot.frames, shot.height, shot.width, 3)
        if frames.shape != expected:
            raise RuntimeError(f"the pipeline made {tuple(frames.shape)} instead of {expected}")
        if not self.checkpoint.has_audio:
            return Clip(frames=frames.cpu().numpy(), audio=None, rate=0)
        return Clip(
            frames=frames.cpu().numpy(),
            audio=_finite(output.audio[0], "sound").float().cpu().numpy(),
            rate=int(self._pipe.vocoder.config.output_sampling_rate),
        )


class _Meter:
    """Turns what the pipeline does into reports, so that a job can be stopped before every forward."""

    def __init__(self, recipe: Recipe, step: Step) -> None:
        self._steps = recipe.steps
        self._forwards = recipe.steps * recipe.forwards_per_step
        self._begun = 0
        self._step = step

    def forward(self, module: Any, args: Any) -> None:
        """Before each call of the transformer; guided recipes make several a step, seconds apart on a big clip."""
        self._step(Stage.DENOISING, _DENOISE_FROM + (_DENOISE_TO - _DENOISE_FROM) * self._begun / self._forwards)
        self._begun += 1

    def step_end(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """After each step. Decoding follows the last one, without another word from the pipeline."""
        if index + 1 == self._steps:
            _finite(tensors["latents"], "video")
            self._step(Stage.DECODING_LATENTS, _DENOISE_TO)
        return {}


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Float frames in 0..1, shape (f, 3, h, w), as uint8 (f, h, w, 3) on the same device, rounded and clamped."""
    count, channels, height, width = frames.shape
    pixels = torch.empty((count, height, width, channels), dtype=torch.uint8, device=frames.device)
    for start in range(0, count, _CHUNK):
        part = (frames[start : start + _CHUNK].float() * 255).round_().clamp_(0, 255)
        pixels[start : start + _CHUNK] = part.permute(0, 2, 3, 1)
    return pixels


def tile_stride(pixels: int) -> int:
    """Distance in pixels between the VAE's 512-pixel tiles along a side of ``pixels``, both multiples of 32.

    diffusers' 448 leaves a last tile of one latent at sides such as 928, and the reflecting padding of LTX-2.0's
    decoder needs two.
    """
    return 416 if pixels // 32 % 14 == 1 else 448


def _finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """``values``, or a fault: NaN would be delivered as a black video or a burst of noise."""
    if not bool(torch.isfinite(values).all()):
        raise Fault(FailureCode.NOT_FINITE, f"the {what} came out as NaN or infinity; another seed or size may work")
    return values


def _load(folder: Path, facts: Checkpoint, device: torch.device) -> Any:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    cuda = device.type == "cuda"
    # Passed, so that they are not loaded: the prompt enhancer of 2.5 alone is 10 GB that nothing here would use.
    without: dict[str, Any] = (
        {} if not facts.has_audio else dict.fromkeys(("processor", "prompt_enhancer", "duration_head"))
    )
    family = LTX2ImageToVideoPipeline if facts.has_audio else LTXImageToVideoPipeline
    try:
        pipe = family.from_pretrained(
            str(folder),
            dtype=torch.bfloat16 if cuda else torch.float32,
            # Straight to the device: 66 GB of weights need not fit the host's memory as well.
            device_map=device.type,
            local_files_only=True,
            scheduler=scheduler_of(expand("standard", facts)),
            **without,
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as {family.__name__}: {error}") from error
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    if cuda:
        pipe.vae.enable_tiling()
    if facts.has_audio and pipe.connectors.config.video_connector_num_learnable_registers:
        pipe.transformer.register_forward_pre_hook(_without_text_mask, with_kwargs=True)
    return pipe


def _without_text_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Drop a mask of all ones: registers have replaced the padding. Any mask rules out the flash attention kernels."""
    return args, {**kwargs, "encoder_attention_mask": None, "audio_encoder_attention_mask": None}
