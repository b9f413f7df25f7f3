"""Weights onto a GPU node: a manifest of files, fetched in parallel ranges, resumed, verified, and moved into place.

A node downloads tens of gigabytes over a link that one connection does not fill and that may break at any time. So each
file is cut into parts that are fetched at once; finished parts are noted beside the file, and a file appears under its
name only when its SHA-256 is right.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

#: Bytes per request: large enough that its start-up costs nothing, small enough to be worth resuming.
PART_BYTES = 32 * 1024**2
CONNECTIONS = 12
TRIES = 6

#: ``on_progress(done, total)`` in bytes.
OnProgress = Callable[[int, int], None]


class WeightsError(Exception):
    """The weights cannot be had; the message says which file and why."""


class WeightsRefused(WeightsError):
    """Their store does not give them to anybody, whichever machine asks: a link too old, no such file, a gate."""


#: What a store answers then.
REFUSALS = frozenset((401, 403, 404))


class WeightFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Relative to the checkpoint's folder, with ``/``.
    path: str
    #: Bytes.
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    #: Presigned GET that understands ``Range``.
    url: str

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        pure = PurePosixPath(value)
        if pure.is_absolute() or ".." in pure.parts or value in ("", "."):
            raise ValueError("must be a relative path inside the checkpoint's folder")
        return value


class Manifest(BaseModel):
    """What a checkpoint consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[WeightFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


async def fetch(
    manifest: Manifest,
    folder: Path,
    on_progress: OnProgress = lambda done, total: None,
    *,
    part_bytes: int = PART_BYTES,
    transport: httpx.AsyncBaseTransport | None = None,
) -> None:
    """Make ``folder`` hold exactly what the manifest names; what is there already and right is not fetched again.

    Raises:
        WeightsRefused: the store does not give a file to anybody.
        WeightsError: a file cannot be had, or is not what the manifest says even after another try.
    """
    meter = _Meter(manifest.total_bytes, on_progress)
    async with httpx.AsyncClient(timeout=httpx.Timeout(30.0), trust_env=False, transport=transport) as client:
        slots = asyncio.Semaphore(CONNECTIONS)
        try:
            async with asyncio.TaskGroup() as group:
                for file in manifest.files:
                    download = _Download(file, folder / file.path, client, slots, meter, part_bytes)
                    group.create_task(download.run())
        except* WeightsError as failures:
            # One reason is enough; the others were cancelled or say the same.
            raise failures.exceptions[0] from None


def fetch_from_hub(repository: str, folder: Path) -> None:
    """The same from a model hub: ``owner/name``, or ``owner/name/part`` for one folder of a repository, which lies in
    ``folder`` as it does there; either with ``@revision``. It resumes and verifies by itself.

    Raises WeightsError if the hub says no.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    place, _, revision = repository.partition("@")
    owner, name, *part = place.split("/")
    wanted = ["/".join([*part, "*"])] if part else None
    try:
        snapshot_download(f"{owner}/{name}", revision=revision or None, local_dir=folder, allow_patterns=wanted)
    except HfHubHTTPError as error:
        raise failed(repository, error.response.status_code, "") from error


def failed(what: str, status: int, hint: str) -> WeightsError:
    """The error for a store's answer. The link is signed: it stays out of the message."""
    kind = WeightsRefused if status in REFUSALS else WeightsError
    return kind(f"{what}: the store answered {status}{hint}")


@dataclass
class _Meter:
    total: int
    report: OnProgress
    done: int = 0

    def add(self, amount: int) -> None:
        self.done += amount
        self.report(self.done, self.total)


class _Download:
    """One file. ``<name>.part`` holds the bytes, ``<name>.parts`` a line per finished part."""

    def __init__(
        self,
        file: WeightFile,
        target: Path,
        client: httpx.AsyncClient,
        slots: asyncio.Semaphore,
        meter: _Meter,
        part_bytes: int,
    ) -> None:
        self._file = file
        self._target = target
        self._client = client
        self._slots = slots
        self._meter = meter
        self._part_bytes = part_bytes
        self._partial = target.with_name(target.name + ".part")
        self._journal = target.with_name(target.name + ".parts")

    async def run(self) -> None:
        if await asyncio.to_thread(self._is_there):
            self._meter.add(self._file.size)
            return
        for last in (False, True):
            await self._fetch_parts()
            if await asyncio.to_thread(_sha256, self._partial) == self._file.sha256:
                await asyncio.to_thread(self._finish)
                return
            # The bytes are useless, and nothing tells which of them: once more from the start.
            await asyncio.to_thread(self._discard)
            self._meter.add(-self._file.size)
            if last:
                raise WeightsError(f"{self._file.path}: the content does not match its sha256")

    async def _fetch_parts(self) -> None:
        done = await asyncio.to_thread(self._open)
        parts = range(-(-self._file.size // self._part_bytes))
        self._meter.add(sum(self._length(part) for part in parts if part in done))
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    if part not in done:
                        group.create_task(self._fetch_part(part))
        except* WeightsError as failures:
            raise failures.exceptions[0] from None

    async def _fetch_part(self, part: int) -> None:
        begin = part * self._part_bytes
        end = begin + self._length(part) - 1
        async with self._slots:
            for attempt in range(TRIES):
                try:
                    data = await self._get(begin, end)
                    break
                except httpx.HTTPError as error:
                    if attempt == TRIES - 1:
                        raise WeightsError(f"{self._file.path}: {type(error).__name__} after {TRIES} tries") from error
                await asyncio.sleep(min(0.5 * 2**attempt, 10))
            await asyncio.to_thread(self._keep, part, begin, data)
        self._meter.add(len(data))

    async def _get(self, begin: int, end: int) -> bytes:
        response = await self._client.get(self._file.url, headers={"range": f"bytes={begin}-{end}"})
        if response.is_client_error:
            raise failed(self._file.path, response.status_code, "; is the link too old?")
        response.raise_for_status()
        data = response.content
        if response.status_code == 200 and len(data) == self._file.size:
            data = data[begin : end + 1]
        if len(data) != end - begin + 1:
            raise WeightsError(f"{self._file.path}: the store sent {len(data)} bytes for bytes {begin}-{end}")
        return data

    def _length(self, part: int) -> int:
        return min(self._part_bytes, self._file.size - part * self._part_bytes)

    def _is_there(self) -> bool:
        path = self._target
        return path.is_file() and path.stat().st_size == self._file.size and _sha256(path) == self._file.sha256

    def _open(self) -> set[int]:
        """Make room for the file; the parts that an earlier run finished, if it cut the file as we do."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        header = f"{self._file.sha256} {self._part_bytes}"
        lines = self._journal.read_text().splitlines() if self._journal.exists() and self._partial.exists() else []
        if not lines or lines[0] != header:
            with open(self._partial, "wb") as partial:
                partial.truncate(self._file.size)
            self._journal.write_text(header + "\n")
            return set()
        # A line that a crash cut short is no number of a part.
        return {int(line) for line in lines[1:] if line.isdecimal()}

    def _keep(self, part: int, begin: int, data: bytes) -> None:
        with open(self._partial, "r+b") as partial:
            partial.seek(begin)
            partial.write(data)
            partial.flush()
            os.fsync(partial.fileno())
        with open(self._journal, "a") as journal:
            journal.write(f"{part}\n")

    def _finish(self) -> None:
        os.replace(self._partial, self._target)
        self._journal.unlink()

    def _discard(self) -> None:
        self._partial.unlink()
        self._journal.unlink()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
