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
from serve_app.intake.probe import MediaProbe, probe, require
from serve_app.storage.base import ObjectMissing, ObjectTooLarge, Storage

#: Decoders at a time in this process; one may take over 1 GB.
_PROBES = 2


class StoredInput(BaseModel):
    """An input that passed: what it is and where we keep it. Stored with the job as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
            key = f"inputs/{job_id}/verified/{spec.name}.{probed.extension}"
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
            probed = await probe(path, spec.kinds)
        require(spec, probed)
        return probed


def _weightiest(failures: ExceptionGroup[Exception]) -> Exception:
    """One failure of a flat group: a permanent one if there is any, a defect of ours last."""
    return min(failures.exceptions, key=lambda error: bool(getattr(error, "transient", True)))
