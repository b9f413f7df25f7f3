"""The gate: from a client's URLs and uploads to stored inputs that a GPU node can rely on."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from deployments.contract import MediaKind
from deployments.engine import InputSpec
from serve_app.intake.errors import IntakeError
from serve_app.intake.fetch import SafeClient
from serve_app.intake.probe import MediaProbe, probe
from serve_app.storage import keys
from serve_app.storage.base import ObjectMissing, ObjectTooLarge, Storage

#: Seconds by which a clip may exceed its limit: encoders pad the last packet.
_GRACE_S = 0.1
#: Decoders at a time in this process; one may take over 1 GB.
_PROBES = 2
_FORMATS: Mapping[MediaKind, str] = {
    "image": "an image (JPEG, PNG, WebP)",
    "video": "a video (MP4, MOV, WebM)",
    "audio": "sound (WAV, MP3, M4A)",
}


class StoredInput(BaseModel):
    """An input that passed: what it is and where we keep it. Stored with the job as JSON."""

    # A row of a newer version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: MediaKind
    content_type: str
    #: In our object store.
    key: str
    #: Bytes.
    size: int
    #: Pixels as displayed; None for sound.
    width: int | None
    height: int | None
    #: Seconds; None for images.
    duration_s: float | None
    #: Frames per second; None unless it is a video.
    fps: float | None
    has_audio: bool


class Intake:
    """Fetches, judges and stores the inputs of jobs. Safe for concurrent use."""

    def __init__(self, storage: Storage, client: SafeClient, workdir: Path) -> None:
        """``workdir`` needs room for the inputs of the jobs under way; nothing stays there."""
        workdir.mkdir(parents=True, exist_ok=True)
        self._storage = storage
        self._client = client
        self._workdir = workdir.resolve()
        self._probes = asyncio.Semaphore(_PROBES)

    async def admit(
        self, job_id: str, specs: tuple[InputSpec, ...], sources: Mapping[str, str], uploads: Mapping[str, str]
    ) -> dict[str, StoredInput]:
        """All inputs of a job, by name: from a URL in ``sources`` or a storage key in ``uploads``.

        Idempotent: a second call stores the same objects again. Raises :class:`IntakeError` about the first input that
        fails, or :class:`~serve_app.storage.base.StorageError` if our store does; both have ``code``, ``message`` and
        ``transient``.
        """
        tasks: dict[str, asyncio.Task[StoredInput]] = {}
        with TemporaryDirectory(prefix="intake-", dir=self._workdir, ignore_cleanup_errors=True) as folder:
            try:
                async with asyncio.TaskGroup() as group:
                    for spec in specs:
                        coroutine = self._admit_one(job_id, spec, sources, uploads, Path(folder))
                        tasks[spec.name] = group.create_task(coroutine)
            except ExceptionGroup as failures:
                # The first one cancelled its siblings; should two have failed at once, the final verdict counts.
                raise _weightiest(failures) from None
        return {name: task.result() for name, task in tasks.items()}

    async def _admit_one(
        self, job_id: str, spec: InputSpec, sources: Mapping[str, str], uploads: Mapping[str, str], folder: Path
    ) -> StoredInput:
        path = folder / spec.name
        try:
            if spec.name in sources:
                await self._client.download(sources[spec.name], path, spec.max_bytes)
            else:
                await self._fetch_upload(uploads.get(spec.name, ""), path, spec)
            probed = await self._judge(path, spec)
            # An upload too: its URL can still be written to, and what a GPU reads has to be what was judged.
            key = keys.verified(job_id, spec.name, probed.extension)
            await self._storage.put_file(key, path, probed.content_type)
        except IntakeError as error:
            raise error.of_input(spec.name) from error
        return StoredInput(
            kind=probed.kind,
            content_type=probed.content_type,
            key=key,
            size=probed.size,
            width=probed.width,
            height=probed.height,
            duration_s=probed.duration_s,
            fps=probed.fps,
            has_audio=probed.has_audio,
        )

    async def _fetch_upload(self, key: str, path: Path, spec: InputSpec) -> None:
        if not key:
            raise IntakeError("upload_missing", "There is neither a URL nor an upload. Give one of them.")
        try:
            await self._storage.get_file(key, path, spec.max_bytes)
        except ObjectMissing as error:
            raise IntakeError(
                "upload_missing", "Nothing was uploaded. PUT the file to the upload URL before asking for the video."
            ) from error
        except ObjectTooLarge as error:
            raise IntakeError(
                "input_too_large",
                f"The upload is larger than the {spec.max_bytes / 2**20:g} MiB allowed. Send a smaller one.",
            ) from error

    async def _judge(self, path: Path, spec: InputSpec) -> MediaProbe:
        async with self._probes:
            probed = await probe(path)
        require(spec, probed)
        return probed


def require(spec: InputSpec, probed: MediaProbe) -> None:
    """Hold a file against what the model takes.

    Raises :class:`IntakeError`: ``unsupported_media``, ``invalid_media`` or ``media_too_long``.
    """
    if probed.kind not in spec.kinds:
        if probed.kind == "audio" and "video" in spec.kinds:
            raise IntakeError("invalid_media", "The file holds sound but no picture. Send a video.")
        wanted = " or ".join(_FORMATS[kind] for kind in spec.kinds)
        raise IntakeError("unsupported_media", f"The file is of kind {probed.kind}. Send {wanted}.")
    # A video may be sent for its sound where the model says so; then it must have some.
    if "audio" in spec.kinds and not probed.has_audio:
        raise IntakeError("invalid_media", "The file holds no sound. Send one with an audio track.")
    if spec.max_seconds is not None and (probed.duration_s or 0) > spec.max_seconds + _GRACE_S:
        raise IntakeError(
            "media_too_long",
            f"It is {probed.duration_s:.1f} s long; at most {spec.max_seconds:g} s are allowed. Send a shorter clip.",
        )


def _weightiest(failures: ExceptionGroup[Exception]) -> Exception:
    """One failure of a flat group: a permanent one if there is any, a defect of ours last."""
    return min(failures.exceptions, key=lambda error: bool(getattr(error, "transient", True)))
