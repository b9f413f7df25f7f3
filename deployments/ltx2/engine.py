"""LTX-2 and LTX-Video as an :class:`~deployments.engine.Engine`."""

import contextlib
import gc
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from PIL import Image

from deployments.contract import ANY_SIZE, EngineAbility, MediaFacts
from deployments.engine import InputFile, Rendered, Step
from deployments.faults import Fault, about_input
from deployments.ltx2 import checkpoint, picture, speed
from deployments.ltx2.memory import Plan
from deployments.ltx2.options import Bucket, SpeedOptions
from deployments.ltx2.pipeline import Clip, Pipeline, Shot
from deployments.ltx2.recipes import num_frames
from deployments.ltx2.spec import DEFAULT_SIZE, SPEC, UPSAMPLER_VARIABLE, LTX2Params
from deployments.media.codec import probe, video_codec
from deployments.media.mp4 import Mp4Encoder, Sound, VideoCodec, write_samples
from deployments.weights import CheckpointError

log = structlog.get_logger()

#: Width and height of random weights where the client names none: noise needs no detail, and a CPU makes five
#: seconds of it in about two.
RANDOM_SIZE = (320, 192)


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A clip and the shot it was made from."""

    shot: Shot
    clip: Clip


class LTX2Engine:
    """Loads the checkpoint that ``LTX2_MODEL_PATH`` names, or builds a tiny random one where it is unset.

    ``LTX2_UPSAMPLER`` names what the recipe ``fast`` needs besides, where the checkpoint has none. Raises
    :class:`CheckpointError`, naming the variable, when one is set to anything that cannot be loaded.
    """

    def __init__(self) -> None:
        probe(cuda=torch.cuda.is_available())
        options = SpeedOptions.from_environment(os.environ)
        speed.require(options)
        self._pipeline = _load()
        self._pipeline.speed_up(options)
        self.random_weights = self._pipeline.checkpoint.random_weights
        recipes = self._pipeline.recipes
        plan = self._pipeline.plan
        assert plan is not None  # A folder is loaded by a plan.
        #: What of the checkpoint is where, and how large clips can be.
        self.plan: Plan = plan
        log.info("ltx2_loaded", checkpoint=str(self._pipeline.checkpoint.version), recipes=recipes, default=recipes[0])
        # Loads the device's kernels, and proves the checkpoint, before the replica reports ready.
        warm_up = replace(_WARM_UP, recipe=recipes[0])
        self._pipeline.render(warm_up, _no_step)
        speed.warmed_up(options, lambda bucket: self._warm_up(_sized(warm_up, bucket)))

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> Shot:
        """Read and fit the image, if there is one, and settle what the client left open. Raises ``Fault`` about it.

        What is beyond :meth:`ability` is not asked.
        """
        wish = LTX2Params.model_validate(params)
        recipe = wish.recipe or self._pipeline.recipes[0]
        width, height = RANDOM_SIZE if self.random_weights else DEFAULT_SIZE
        width, height = wish.width or width, wish.height or height
        frames = num_frames(wish.duration, wish.fps)
        image: Image.Image | None = None
        if given := inputs.get("image"):
            with about_input("image"):
                image = picture.read(given.path, given.format(SPEC.input("image")))
                image = picture.fit(image, width, height, wish.fit)
        return Shot(
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            image=image,
            width=width,
            height=height,
            frames=frames,
            fps=wish.fps,
            recipe=recipe,
            # 32 bits: the seed comes back as a JSON number, which JavaScript reads exactly to 53.
            seed=secrets.randbits(32) if wish.seed is None else wish.seed,
        )

    def _warm_up(self, shot: Shot) -> None:
        # Without an image the transformer is told one noise level instead of one a token, which is another shape.
        for image in (shot.image, None):
            self._pipeline.render(replace(shot, image=image), _no_step)

    def run(self, prepared: Shot, step: Step) -> Footage:
        """Make the clip on the device."""
        return Footage(shot=prepared, clip=self._pipeline.render(prepared, step))

    def publish(self, result: Footage, workdir: Path) -> Rendered:
        """Encode the clip, its sound cut or padded to the length of the picture."""
        shot, clip = result.shot, result.clip
        rate = Fraction(shot.fps)
        path = workdir / "output.mp4"
        codec = video_codec(shot.width, shot.height, cuda=torch.cuda.is_available())
        try:
            _encode(result, path, codec)
        except Fault as fault:
            if not codec.on_card:
                raise
            # A card full of weights may have no room left for its encoder; the frames are here.
            log.warning("card_did_not_encode", error=fault.message)
            _encode(result, path, video_codec(shot.width, shot.height, cuda=False))
        return Rendered(
            path=path,
            media=MediaFacts(
                width=shot.width,
                height=shot.height,
                fps=f"{rate.numerator}/{rate.denominator}",
                frames=shot.frames,
                has_audio=clip.audio is not None,
            ),
            notes={
                "seed": shot.seed,
                "recipe": shot.recipe,
                "checkpoint": str(self._pipeline.checkpoint.version),
            },
        )

    def ability(self) -> EngineAbility:
        """See :class:`deployments.engine.Engine`."""
        return EngineAbility(
            weights=str(self._pipeline.checkpoint.version),
            # Of noise the head reckons with larger clips than are made (RANDOM_SIZE), and the plan is a rough bound.
            variants={
                name: ANY_SIZE if self.random_weights else size for name, size in self.plan.largest.items() if size
            },
            default_variant=self._pipeline.recipes[0],
            plan=str(self.plan),
        )

    def free(self) -> None:
        """Return cached device memory. Harmless on a device that is lost."""
        gc.collect()
        if torch.cuda.is_available():
            # On a dead context this raises, and the replica is about to be replaced anyway.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


def _encode(footage: Footage, path: Path, codec: VideoCodec) -> None:
    shot, clip = footage.shot, footage.clip
    rate = Fraction(shot.fps)
    with contextlib.ExitStack() as opened:
        sound: Sound | None = None
        if clip.audio is not None:
            samples = path.with_name("sound.f32")
            write_samples(samples, fit_length(clip.audio, round(shot.frames * clip.rate / rate)))
            sound = Sound(clip.rate, clip.audio.shape[0], opened.enter_context(samples.open("rb")))
        with Mp4Encoder(path, width=shot.width, height=shot.height, fps=rate, audio=sound, codec=codec) as encoder:
            encoder.write(clip.frames)


def fit_length(audio: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """``audio``, shape (channels, n), cut or padded with silence to (channels, ``samples``)."""
    missing = max(0, samples - audio.shape[1])
    return np.pad(audio[:, :samples], ((0, 0), (0, missing)))


_WARM_UP = Shot(
    prompt="warm up",
    negative_prompt="",
    image=Image.new("RGB", (256, 256), "grey"),
    width=256,
    height=256,
    frames=9,
    fps=24,
    recipe="standard",
    seed=0,
)


def _no_step(stage: str, fraction: float) -> None:
    pass


def _sized(shot: Shot, bucket: Bucket) -> Shot:
    image = Image.new("RGB", (bucket.width, bucket.height), "grey")
    return replace(shot, width=bucket.width, height=bucket.height, frames=bucket.frames, image=image)


def _load() -> Pipeline:
    joint = os.environ.get(UPSAMPLER_VARIABLE)
    if joint:
        with _named(UPSAMPLER_VARIABLE, joint):
            checkpoint.check_upsampler(Path(joint))
    upsampler = Path(joint) if joint else None
    if named := os.environ.get(SPEC.weights_variable):
        with _named(SPEC.weights_variable, named):
            return Pipeline(Path(named), upsampler)
    # Here, because a replica with real weights needs none of it.
    from deployments.ltx2 import tiny

    data = Path(os.environ.get("VIDEO_API_DATA_DIR") or ".data")
    return Pipeline(tiny.ensure(data / "tiny" / SPEC.name), upsampler)


@contextlib.contextmanager
def _named(variable: str, value: str) -> Iterator[None]:
    """What the body finds wrong is about what ``variable`` says."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{variable}={value}: {error}") from error
