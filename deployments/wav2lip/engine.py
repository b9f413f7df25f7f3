"""Wav2Lip as the replica drives it."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deployments import accelerator
from deployments.contract import EngineAbility, MediaFacts
from deployments.engine import InputFile, Rendered, Step
from deployments.failure_code import FailureCode
from deployments.faults import Fault, about_input
from deployments.media import codec
from deployments.wav2lip import audio, checkpoint, lipsync, video
from deployments.wav2lip.centerface import CenterFace
from deployments.wav2lip.generator import Generator, TorchGenerator
from deployments.wav2lip.lipsync import Job
from deployments.wav2lip.pasting import CardPaste, paste_each
from deployments.wav2lip.s3fd import S3FD
from deployments.wav2lip.spec import S3FD_VARIABLE, SPEC, Wav2LipParams
from deployments.wav2lip.tracks import Detector
from deployments.weights import CheckpointError


@dataclass(frozen=True)
class Prepared:
    """A job and where its mp4 goes."""

    job: Job
    target: Path


@dataclass(frozen=True)
class Made:
    """The mp4 is there."""

    prepared: Prepared
    tally: lipsync.Tally


class Wav2LipEngine:
    """See :class:`deployments.engine.Engine`. The video is encoded while it is computed, so ``publish`` has no work.

    ``generator`` and ``detectors`` replace the networks, which are loaded otherwise as the environment says.
    """

    def __init__(self, generator: Generator | None = None, detectors: Mapping[str, Detector] | None = None) -> None:
        self._device = accelerator.device()
        self._cuda = self._device.type == "cuda"
        codec.probe(cuda=self._cuda)
        self._paste = CardPaste(self._device) if self._cuda else paste_each
        path = os.environ.get(SPEC.weights_variable)
        self.random_weights = generator is None and not path
        if generator is None:
            if path:
                try:
                    network = checkpoint.load(Path(path))
                except CheckpointError as error:
                    raise CheckpointError(f"{SPEC.weights_variable}={path}: {error}") from error
            else:
                network = checkpoint.build(checkpoint.random_weights(), source="random weights")
            generator = TorchGenerator(network, self._device)
        self._generator = generator
        self._detectors = dict(detectors) if detectors is not None else self._load_detectors()

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> Prepared:
        """Probe the video and turn the sound into a mel. Raises ``Fault`` for what cannot be used."""
        asked = Wav2LipParams.model_validate(dict(params))
        if asked.detector not in self._detectors:
            raise Fault(
                FailureCode.DETECTOR_UNAVAILABLE,
                f"This service has no weights for the detector {asked.detector}. Its operator sets {S3FD_VARIABLE}.",
            )
        footage, sound = inputs["video"], inputs["audio"]
        with about_input("video"):
            spec = SPEC.input("video")
            source = video.probe(footage.path, footage.format(spec), spec, asked.resize_factor)
        with about_input("audio"), tempfile.TemporaryDirectory(dir=workdir) as room:
            spec = SPEC.input("audio")
            speech, track = audio.decode(sound.path, sound.format(spec), spec, Path(room))
            frames = audio.frames_for(speech.seconds, source.fps)
            if asked.sync_mode == "cut" and not source.still:
                frames = min(frames, source.frames)
            mel = audio.mel_for(speech, frames, source.fps)
        job = Job(source=source, track=track, mel=mel, frames=frames, params=asked)
        if asked.face_box is not None:
            # Refused here, before the device is busy.
            lipsync.face_box(job)
        return Prepared(job, workdir / "output.mp4")

    def run(self, prepared: Prepared, step: Step) -> Made:
        """Make the mp4."""
        source = prepared.job.source
        encoder = codec.video_codec(source.width, source.height, cuda=self._cuda)
        detector = self._detectors[prepared.job.params.detector]
        try:
            tally = lipsync.render(prepared.job, self._generator, detector, step, prepared.target, encoder, self._paste)
        except Exception as error:
            fault = accelerator.fault_of(error)
            if fault is None:
                raise
            raise fault from error
        return Made(prepared, tally)

    def publish(self, result: Made, workdir: Path) -> Rendered:
        """The mp4 as it lies in ``workdir``."""
        job = result.prepared.job
        source = job.source
        return Rendered(
            path=result.prepared.target,
            media=MediaFacts(
                width=source.width,
                height=source.height,
                fps=f"{source.fps.numerator}/{source.fps.denominator}",
                frames=job.frames,
                has_audio=True,
            ),
            notes={"frames_without_face": result.tally.untouched},
        )

    def ability(self) -> EngineAbility:
        """Everything: it works by the batch, whatever the video's length."""
        return EngineAbility()

    def free(self) -> None:
        """Give cached memory of the card back."""
        if self._cuda:
            torch.cuda.empty_cache()

    def _load_detectors(self) -> dict[str, Detector]:
        detectors: dict[str, Detector] = {"centerface": CenterFace(self._device)}
        if path := os.environ.get(S3FD_VARIABLE):
            detectors["s3fd"] = S3FD(Path(path), self._device)
        return detectors
