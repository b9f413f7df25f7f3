"""A loaded checkpoint: image and prompt in, frames and sound out. The only module that calls diffusers' pipelines."""

import contextlib
import functools
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import torch
import transformers
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline, LTXImageToVideoPipeline, LTXPipeline
from numpy.typing import NDArray
from PIL import Image

from deployments import accelerator
from deployments.engine import Step
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.ltx2 import checkpoint, placement, speed, upsampler
from deployments.ltx2.checkpoint import UPSAMPLER, Checkpoint
from deployments.ltx2.memory import Plan
from deployments.ltx2.options import COMPILE, FP8, SpeedOptions
from deployments.ltx2.picture import widened
from deployments.ltx2.placement import Placement
from deployments.ltx2.recipes import IMAGE_ARGUMENTS, Pass, Recipe, RecipeName, canvas, expand, recipes_of
from deployments.ltx2.schedule import scheduler_of
from deployments.ltx2.spec import DEFAULT_NEGATIVE_PROMPT
from deployments.ltx2.text import Text, apart
from deployments.stage import Stage
from deployments.weights import CheckpointError

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
    #: Pixels, even. Cut out of the middle of what the recipe makes (:func:`~deployments.ltx2.recipes.canvas`).
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

    ``joint`` is the folder of a latent upsampler, in place of the one in ``folder``. Raises :class:`CheckpointError`
    when the folder is not a complete diffusers checkpoint, or the upsampler not one for it.
    """

    def __init__(self, folder: Path, joint: Path | None = None) -> None:
        facts = checkpoint.read(folder)
        device = accelerator.device()
        if joint is None and (folder / UPSAMPLER).is_dir():
            joint = folder
        joint = checkpoint.check_upsampler(joint) if joint and facts.row.two_stages else None
        plan = placement.planned(folder, facts, device, joint)
        pipe = _load(folder, facts, device, plan)
        self._take(pipe, facts, upsampler.load(joint, device, pipe.vae.dtype) if joint else None, plan)

    @classmethod
    def of(cls, pipe: Any, facts: Checkpoint, upsampler: Any = None) -> Self:
        """Over what is on the device already: a diffusers pipeline of ``facts``'s version, which stays as it is."""
        made = cls.__new__(cls)
        made._take(pipe, facts, upsampler, None)
        return made

    def _take(self, pipe: Any, facts: Checkpoint, upsampler: Any, plan: Plan | None) -> None:
        if upsampler is not None and upsampler.config.in_channels != pipe.transformer.config.in_channels:
            raise CheckpointError(
                f"the upsampler takes latents of {upsampler.config.in_channels} channels, and the checkpoint's have "
                f"{pipe.transformer.config.in_channels}; it has to be one for LTX-{facts.version}"
            )
        self.checkpoint = facts
        #: What it can make clips by; the first is meant where nobody names one.
        self.recipes = recipes_of(two_stages=facts.row.two_stages and upsampler is not None)
        #: What is where, and what is made at the most; None: as the pipeline was given.
        self.plan = plan
        self._device = accelerator.device()
        self._placement = Placement(pipe, plan, self._device) if plan else None
        self._pipe = pipe
        self._upsampler = upsampler
        self._recipes = {name: expand(name, facts) for name in self.recipes}
        self._schedulers = {name: [scheduler_of(part) for part in self._recipes[name].passes] for name in self.recipes}
        self._text = Text(pipe, facts.text_tokens, always=(DEFAULT_NEGATIVE_PROMPT,))
        self._with_image, self._without = _callable(pipe, facts)

    def speed_up(self, options: SpeedOptions) -> None:
        """See :func:`speed.apply`. Raises :class:`CheckpointError` for what the plan has no room for, too."""
        if self.plan:
            self._require_room(self.plan, options)
        speed.apply(self._pipe, options)

    def _require_room(self, plan: Plan, options: SpeedOptions) -> None:
        if plan.off_card("transformer") and (options.fp8 or options.compiled):
            raise CheckpointError(
                f"{FP8} and {COMPILE} are for a card that holds the transformer as it is; this one holds it "
                f"{plan.arrangement} (docs/memory.md): leave them out here"
            )
        for bucket in options.compiled:
            if not plan.fits(self.recipes[0], bucket.width, bucket.height, bucket.frames):
                raise CheckpointError(
                    f"{COMPILE}: {bucket.width}x{bucket.height}x{bucket.frames} does not fit this card's memory"
                )

    def render(self, shot: Shot, step: Step) -> Clip:
        """Make the clip, reporting its three stages. What ``step`` raises passes through.

        The recipe is one of :attr:`recipes`. Raises ``OutOfMemory`` and ``DeviceLost``; the pipeline is usable
        afterwards in all other cases and after the former. The same shot gives the same bits on the same device.
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
        width, height = canvas(shot.recipe, shot.width, shot.height)
        meter = _Meter(recipe, step)
        step(Stage.ENCODING_PROMPT, 0.0)
        job: dict[str, Any] = {
            "num_frames": shot.frames,
            "frame_rate": float(shot.fps),
            "generator": torch.Generator(self._device).manual_seed(shot.seed),
            "callback_on_step_end": meter.step_end,
            **self._text.arguments(shot.prompt, shot.negative_prompt if recipe.guided else None, self._device),
        }
        if self._placement:
            self._placement.make_room(shot.recipe, shot.width, shot.height, shot.frames)
        if shot.image is not None:
            job["image"] = widened(shot.image, width, height)
        # The VAE of LTX-Video draws noise of its own from the global generator.
        torch.manual_seed(shot.seed)
        with self._hooked(meter):
            for part, scheduler in zip(recipe.passes, self._schedulers[shot.recipe], strict=True):
                meter.begin(part)
                size = {"width": width // part.divisor, "height": height // part.divisor}
                output = self._denoise(part, scheduler, job | size)
                if part is not recipe.passes[-1]:
                    # Both are as the VAEs know them, not normalised; the next pass normalises them and adds noise.
                    latents = self._upsampler(output.frames.to(self._upsampler.dtype))
                    job |= {"latents": latents, "audio_latents": output.audio}
        frames = to_uint8(output.frames[0])
        expected = (shot.frames, height, width, 3)
        if frames.shape != expected:
            raise RuntimeError(f"the pipeline made {tuple(frames.shape)} instead of {expected}")
        top, left = (height - shot.height) // 2, (width - shot.width) // 2
        frames = frames[:, top : top + shot.height, left : left + shot.width]
        if not self.checkpoint.has_audio:
            return Clip(frames=to_host(frames), audio=None, rate=0)
        return Clip(
            frames=to_host(frames),
            audio=to_host(_finite(output.audio[0], "sound").float()),
            rate=int(self._pipe.vocoder.config.output_sampling_rate),
        )

    def _denoise(self, part: Pass, scheduler: Any, job: dict[str, Any]) -> Any:
        """What diffusers makes of one pass."""
        pipe = self._with_image if "image" in job else self._without
        pipe.scheduler = scheduler
        without = frozenset() if "image" in job else IMAGE_ARGUMENTS
        return pipe(**{name: value for name, value in part.arguments.items() if name not in without} | job)

    @contextlib.contextmanager
    def _hooked(self, meter: "_Meter") -> Iterator[None]:
        transformer = self._pipe.transformer
        with contextlib.ExitStack() as hooks:
            hooks.callback(transformer.register_forward_pre_hook(meter.forward).remove)
            if self.checkpoint.has_audio and self._pipe.connectors.config.video_connector_num_learnable_registers:
                handle = transformer.register_forward_pre_hook(_without_text_mask, with_kwargs=True)
                hooks.callback(handle.remove)
            yield


class _Meter:
    """Turns what the pipeline does into reports, so that a job can be stopped before every forward."""

    def __init__(self, recipe: Recipe, step: Step) -> None:
        self._last = recipe.passes[-1]
        self._whole = sum(part.forwards * _cost(part) for part in recipe.passes)
        self._done = 0.0
        self._step = step

    def begin(self, part: Pass) -> None:
        """Before each pass."""
        self._part = part

    def forward(self, module: Any, args: Any) -> None:
        """Before each call of the transformer; guided recipes make several a step, seconds apart on a big clip."""
        self._step(Stage.DENOISING, _DENOISE_FROM + (_DENOISE_TO - _DENOISE_FROM) * self._done / self._whole)
        self._done += _cost(self._part)

    def step_end(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """After each step. Decoding follows the last one, without another word from the pipeline."""
        if index + 1 == self._part.steps:
            _finite(tensors["latents"], "video")
            if self._part is self._last:
                self._step(Stage.DECODING_LATENTS, _DENOISE_TO)
        return {}


def _cost(part: Pass) -> float:
    """Of one forward, by the pixels it is for."""
    return 1 / part.divisor**2


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Float frames in 0..1, shape (f, 3, h, w), as uint8 (f, h, w, 3) on the same device, rounded and clamped."""
    count, channels, height, width = frames.shape
    pixels = torch.empty((count, height, width, channels), dtype=torch.uint8, device=frames.device)
    for start in range(0, count, _CHUNK):
        part = (frames[start : start + _CHUNK].float() * 255).round_().clamp_(0, 255)
        pixels[start : start + _CHUNK] = part.permute(0, 2, 3, 1)
    return pixels


def to_host(values: torch.Tensor) -> NDArray[Any]:
    """``values`` copied once, by the device itself where it is a CUDA one: into memory that cannot be swapped out."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
    array: NDArray[Any] = host.copy_(values).numpy()
    return array


def _finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """``values``, or a fault: NaN would be delivered as a black video or a burst of noise."""
    if not bool(torch.isfinite(values).all()):
        raise Fault(FailureCode.NOT_FINITE, f"the {what} came out as NaN or infinity; another seed or size may work")
    return values


def _load(folder: Path, facts: Checkpoint, device: torch.device, plan: Plan) -> Any:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # Passed, so that they are not loaded: the prompt enhancer of 2.5 alone is 10 GB that nothing here would use.
    without: dict[str, Any] = (
        {} if not facts.has_audio else dict.fromkeys(("processor", "prompt_enhancer", "duration_head"))
    )
    family = LTX2ImageToVideoPipeline if facts.has_audio else LTXImageToVideoPipeline
    make = functools.partial(
        family.from_pretrained,
        str(folder),
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        local_files_only=True,
        scheduler=scheduler_of(expand("standard", facts).passes[0]),
        **without,
    )
    try:
        pipe = placement.load(make, plan, device)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as {family.__name__}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _callable(pipe: Any, facts: Checkpoint) -> tuple[Any, Any]:
    """Pipelines over the components of ``pipe``, with an image and without, that take prompts as ``Text`` gives them.

    They have no text encoder, so that none of them can call it.
    """
    parts = {**pipe.components, "text_encoder": None}
    if facts.has_audio:
        config = pipe.connectors.config
        channels = config.video_connector_num_attention_heads * config.video_connector_attention_head_dim
        parts["connectors"] = apart(channels)
    families = (LTX2ImageToVideoPipeline, LTX2Pipeline) if facts.has_audio else (LTXImageToVideoPipeline, LTXPipeline)
    made = tuple(family(**parts) for family in families)
    for each in made:
        each.set_progress_bar_config(disable=True)
    return made


def _without_text_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Drop a mask of all ones: registers have replaced the padding. Any mask rules out the flash attention kernels."""
    return args, {**kwargs, "encoder_attention_mask": None, "audio_encoder_attention_mask": None}
