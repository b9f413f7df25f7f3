"""The gate: from a client's URLs and uploads to stored inputs that a GPU node can rely on."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from deployments.engine import InputSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from serve_app.fair import FairSlots
from serve_app.intake.probe import MediaProbe, probe, require
from serve_app.intake.workdir import Workdir
from serve_app.outbound.base import Outbound, OutboundError, Reason
from serve_app.storage import keys
from serve_app.storage.base import ObjectMissing, ObjectTooLarge, Storage, StorageError

#: Decoders at a time in this process; one may take over 1 GB, and half a minute if its file is made for that. So an
#: owner never holds them all, not even while nobody else waits: the next who comes would wait for him. Nor do several
#: whose files have been like that.
_PROBES, _PROBES_SHARE, _PROBES_SPARE = 2, 1, 1
#: Copies from and to the object store at a time; each holds a thread.
_COPIES, _COPIES_SHARE = 8, 4
_CODES: Mapping[Reason, FailureCode] = {
    "unreachable": FailureCode.SOURCE_UNREACHABLE,
    "rejected": FailureCode.SOURCE_REJECTED,
    "forbidden": FailureCode.SOURCE_FORBIDDEN,
    "too_large": FailureCode.INPUT_TOO_LARGE,
}


class StoredInput(BaseModel):
    """An input that passed: what it is and where we keep it. Stored with the job as JSON."""

    # A row of another version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    content_type: str
    #: In our object store.
    key: str
    #: Bytes.
    size: int


class Intake:
    """Fetches, judges and stores the inputs of jobs. Safe for concurrent use."""

    def __init__(self, storage: Storage, outbound: Outbound, workdir: Path) -> None:
        """``workdir`` needs room for the inputs of the jobs under way; nothing stays there."""
        self._storage = storage
        self._outbound = outbound
        self._workdir = Workdir(workdir)
        self._probes = FairSlots(_PROBES, _PROBES_SHARE, spare=_PROBES_SPARE)
        self._copies = FairSlots(_COPIES, _COPIES_SHARE)

    async def admit(
        self,
        job_id: str,
        specs: tuple[InputSpec, ...],
        sources: Mapping[str, str],
        uploads: Mapping[str, str],
        videos: Mapping[str, str] = MappingProxyType({}),
        *,
        owner: str = "",
    ) -> dict[str, StoredInput]:
        """All inputs of a job, by name: from a URL in ``sources``, or from a storage key in ``uploads`` or in
        ``videos``, which are other jobs'. An optional one that is in none was left out.

        Idempotent: a second call stores the same objects again. Raises :class:`~deployments.faults.Fault` about the
        first input that fails, :class:`~serve_app.storage.base.StorageError` if our store or disk does, or
        :class:`~serve_app.outbound.base.OutboundUnavailable`: neither of those is an attempt. ``owner`` is with
        whom others share the work fairly, a user of a key: see ``fair.py``.
        """
        tasks: dict[str, asyncio.Task[StoredInput]] = {}
        with _our_disk(), self._workdir.folder() as folder:
            try:
                async with asyncio.TaskGroup() as group:
                    for spec in specs:
                        if spec.optional and not any(spec.name in given for given in (sources, uploads, videos)):
                            continue
                        coroutine = self._admit_one(job_id, spec, sources, uploads, videos, folder, owner)
                        tasks[spec.name] = group.create_task(coroutine)
            except ExceptionGroup as failures:
                # The first one cancelled its siblings; should two have failed at once, the final verdict counts.
                raise _weightiest(failures) from None
        return {name: task.result() for name, task in tasks.items()}

    async def _admit_one(
        self,
        job_id: str,
        spec: InputSpec,
        sources: Mapping[str, str],
        uploads: Mapping[str, str],
        videos: Mapping[str, str],
        folder: Path,
        owner: str,
    ) -> StoredInput:
        path = folder / spec.name
        try:
            if spec.name in sources:
                await self._fetch_source(sources[spec.name], path, spec, owner)
            elif spec.name in videos:
                await self._fetch_video(videos[spec.name], path, spec, owner)
            else:
                await self._fetch_upload(uploads.get(spec.name, ""), path, spec, owner)
            probed = await self._judge(path, spec, owner)
            # An upload too: its URL can still be written to, and what a GPU reads has to be what was judged.
            key = keys.verified(job_id, spec.name, probed.extension)
            async with self._copies.hold(owner):
                await self._storage.put_file(key, path, probed.content_type)
        except Fault as error:
            raise error.of_input(spec.name) from error
        return StoredInput(content_type=probed.content_type, key=key, size=probed.size)

    async def _fetch_source(self, url: str, path: Path, spec: InputSpec, owner: str) -> None:
        try:
            await self._outbound.download(url, path, spec.max_bytes, owner=owner)
        except OutboundError as error:
            raise Fault(_CODES[error.reason], error.message, transient=error.transient) from error

    async def _fetch_upload(self, key: str, path: Path, spec: InputSpec, owner: str) -> None:
        if not key:
            raise Fault(FailureCode.UPLOAD_MISSING, "There is neither a URL nor an upload. Give one of them.")
        try:
            async with self._copies.hold(owner):
                await self._storage.get_file(key, path, spec.max_bytes)
        except ObjectMissing as error:
            raise Fault(
                FailureCode.UPLOAD_MISSING,
                "Nothing was uploaded. PUT the file to the upload URL before asking for the video.",
            ) from error
        except ObjectTooLarge as error:
            raise Fault(
                FailureCode.INPUT_TOO_LARGE,
                f"The upload is larger than the {spec.max_bytes / 2**20:g} MiB allowed. Send a smaller one.",
            ) from error

    async def _fetch_video(self, key: str, path: Path, spec: InputSpec, owner: str) -> None:
        try:
            async with self._copies.hold(owner):
                await self._storage.get_file(key, path, spec.max_bytes)
        except ObjectMissing as error:
            raise Fault(
                FailureCode.SOURCE_FAILED,
                "The other job's video was deleted before it could be used. Make it again, then this one.",
            ) from error
        except ObjectTooLarge as error:
            raise Fault(
                FailureCode.INPUT_TOO_LARGE,
                f"The other job's video is larger than the {spec.max_bytes / 2**20:g} MiB allowed. Make a shorter one.",
            ) from error

    async def _judge(self, path: Path, spec: InputSpec, owner: str) -> MediaProbe:
        async with self._probes.hold(owner):
            probed = await probe(path, spec.kinds)
        require(spec, probed)
        return probed


@contextmanager
def _our_disk() -> Iterator[None]:
    """A full disk, or no process to be had, is no fault of the input."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Our own disk failed: {error.strerror or error}.", transient=True) from error


def _weightiest(failures: ExceptionGroup[Exception]) -> Exception:
    """One failure of a flat group: a permanent one if there is any, a defect of ours last."""
    return min(failures.exceptions, key=lambda error: bool(getattr(error, "transient", True)))
