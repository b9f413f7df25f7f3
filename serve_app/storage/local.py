"""Objects as files below one directory, for a laptop or a single machine with a volume.

Same semantics as the S3 store: presigned URLs (served by ``serve_app/api/files.py``), writes that appear whole or not
at all, MD5 by ``stat``. Several processes may use one directory.
"""

import asyncio
import hashlib
import os
import re
import shutil
import stat
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from serve_app.disk import require_room
from serve_app.storage.base import (
    InvalidKey,
    Listed,
    ObjectInfo,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    check_folder,
)
from serve_app.storage.signature import Grant, Signer

T = TypeVar("T")

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT}){{0,7}}", re.ASCII)
#: No key begins with a dot, so no key can name this folder.
_TEMPORARY = ".tmp"
#: Seconds after which an unfinished write is a leftover of a killed process.
_STALE_S = 24 * 3600
_CHUNK = 1024 * 1024
_REMEMBERED = 4096
#: Bytes that have to be free: a disk that is full to the last one lets nobody else work either.
_RESERVE = 256 * 1024 * 1024
#: Bytes that a check writes.
_PROBE = bytes(1024 * 1024)

#: What a reader is told an object is. A short list on purpose: nothing here can run script in a browser.
_CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".avif": "image/avif",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
}


class LocalStorage:
    """A directory, and the signer of URLs into it."""

    def __init__(
        self,
        root: Path,
        base_url: str,
        secret: bytes,
        clock: Callable[[], float] = time.time,
        reserve: int = _RESERVE,
    ) -> None:
        """``base_url`` is where clients and GPU nodes reach the API, e.g. ``http://127.0.0.1:3000``; ``reserve`` is how
        many bytes of the disk have to be free for the store to count as working."""
        root.mkdir(parents=True, exist_ok=True)
        self._root = root.resolve()
        self._reserve = reserve
        self._signer = Signer(base_url, secret, clock)
        self._temporary = self._root / _TEMPORARY
        self._temporary.mkdir(exist_ok=True)
        self._sweep()
        #: MD5 by inode, time and size: a replaced file has another identity.
        self._hashes: OrderedDict[tuple[int, int, int], str] = OrderedDict()

    async def presign_get(self, key: str, expires_s: int, *, filename: str | None = None) -> str:
        """See :class:`~serve_app.storage.base.Storage`."""
        return self._signer.url("GET", _check_key(key), expires_s, filename=filename)

    async def presign_put(self, key: str, expires_s: int, content_type: str, size: int | None = None) -> str:
        """See :class:`~serve_app.storage.base.Storage`. The route that serves the link has a limit of its own."""
        del size
        return self._signer.url("PUT", _check_key(key), expires_s, content_type=content_type)

    def verify(self, method: str, key: str, query: Mapping[str, str]) -> Grant:
        """What a request to ``/files/{key}`` may do.

        Raises :class:`~serve_app.storage.signature.BadSignature`, :class:`~serve_app.storage.signature.Expired` or
        :class:`InvalidKey`. For a PUT the caller compares ``grant.content_type`` with the request's header.
        """
        return self._signer.verify(method, _check_key(key), query)

    async def stat(self, key: str) -> ObjectInfo | None:
        """See :class:`~serve_app.storage.base.Storage`. Reads the file the first time."""

        def measure() -> ObjectInfo | None:
            path = self._path(key)
            try:
                with path.open("rb") as file:
                    return ObjectInfo(size=os.fstat(file.fileno()).st_size, md5=self._md5(file))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

        return await _call(measure)

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """See :class:`~serve_app.storage.base.Storage`. The content type follows from the key's extension instead."""

        def put() -> None:
            with self._writing(key) as file, path.open("rb") as source:
                require_room(self._root, os.fstat(source.fileno()).st_size)
                shutil.copyfileobj(source, file, _CHUNK)

        await _call(put)

    async def copy(self, source: str, target: str) -> None:
        """See :class:`~serve_app.storage.base.Storage`."""

        def put() -> None:
            with self._open(source) as file, self._writing(target) as copied:
                require_room(self._root, os.fstat(file.fileno()).st_size)
                shutil.copyfileobj(file, copied, _CHUNK)

        await _call(put)

    async def write(self, key: str, chunks: AsyncIterator[bytes], max_bytes: int) -> ObjectInfo:
        """Store a request body. Raises :class:`ObjectTooLarge`; then, or if ``chunks`` raises, nothing changes."""
        size, digest = 0, hashlib.md5(usedforsecurity=False)
        writing = self._writing(key)
        file = await _call(writing.__enter__)

        def append(chunk: bytes) -> None:
            require_room(self._root, len(chunk))
            file.write(chunk)

        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise ObjectTooLarge(key, max_bytes)
                digest.update(chunk)
                await _call(partial(append, chunk))
        except BaseException as error:
            # In a thread it could be lost to the very cancellation that brought us here.
            writing.__exit__(type(error), error, error.__traceback__)
            raise
        await _call(lambda: writing.__exit__(None, None, None))
        return ObjectInfo(size=size, md5=digest.hexdigest())

    async def locate(self, key: str) -> tuple[Path, os.stat_result] | None:
        """The file to serve for a read, None if there is no such object."""

        def find() -> tuple[Path, os.stat_result] | None:
            path = self._path(key)
            try:
                facts = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return (path, facts) if stat.S_ISREG(facts.st_mode) else None

        return await _call(find)

    async def get_file(self, key: str, path: Path, max_bytes: int) -> None:
        """See :class:`~serve_app.storage.base.Storage`."""

        def get() -> None:
            with self._open(key) as source:
                size = os.fstat(source.fileno()).st_size
                if size > max_bytes:
                    raise ObjectTooLarge(key, max_bytes)
                require_room(path.parent, size)
                try:
                    with path.open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK)
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise

        await _call(get)

    async def delete_prefix(self, prefix: str) -> int:
        """See :class:`~serve_app.storage.base.Storage`."""
        folder = check_folder(prefix)

        def delete() -> int:
            top = self._path(folder[:-1])
            deleted = 0
            for directory, _, names in os.walk(top, topdown=False):
                for name in names:
                    Path(directory, name).unlink(missing_ok=True)
                    deleted += 1
                try:
                    Path(directory).rmdir()
                except OSError:
                    # Somebody wrote there meanwhile; that object is newer than this call.
                    continue
            for folder_above in top.parents:
                if folder_above == self._root:
                    break
                try:
                    folder_above.rmdir()
                except OSError:
                    break
            return deleted

        return await _call(delete)

    async def page(self, prefix: str, after: str, limit: int) -> Sequence[Listed]:
        """See :class:`~serve_app.storage.base.Storage`. Sorted by name, folder by folder."""
        folder = check_folder(prefix)

        def read() -> Sequence[Listed]:
            top = self._path(folder[:-1])
            return list(islice(self._walk(top, tuple(after.split("/")) if after else ()), limit))

        return await _call(read)

    def _walk(self, top: Path, after: tuple[str, ...]) -> Iterator[Listed]:
        at = top.relative_to(self._root).parts
        try:
            entries = sorted(os.scandir(top), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            # Deleted meanwhile.
            return
        for entry in entries:
            parts = (*at, entry.name)
            if parts < after[: len(parts)] or parts == after:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), after)
            elif entry.is_file(follow_symlinks=False):
                try:
                    yield Listed("/".join(parts), entry.stat(follow_symlinks=False).st_mtime)
                except FileNotFoundError:
                    continue

    async def check(self) -> None:
        """See :class:`~serve_app.storage.base.Storage`. Writes a MiB: an empty file can be made on a full disk, too."""

        def write() -> None:
            disk = os.statvfs(self._root)
            if disk.f_bavail * disk.f_frsize < self._reserve:
                raise StorageError(
                    f"The disk of the media folder is full: fewer than {self._reserve >> 20} MiB are free.",
                    transient=True,
                )
            probe = self._temporary / f"check-{uuid4().hex}"
            try:
                probe.write_bytes(_PROBE)
            finally:
                probe.unlink(missing_ok=True)

        await _call(write)

    def public_url(self, key: str) -> str | None:
        """Always None: everything is read by presigned URLs."""
        return None

    def _path(self, key: str) -> Path:
        """Where the object is. Raises :class:`InvalidKey` if that is not, symlinks followed, exactly below the root."""
        path = self._root / _check_key(key)
        if path.resolve() != path:
            raise InvalidKey(key)
        return path

    def _open(self, key: str) -> BufferedReader:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(key) from None

    @contextmanager
    def _writing(self, key: str) -> Iterator[BinaryIO]:
        """A file that becomes the object when the block ends well: durable first, visible after."""
        path = self._path(key)
        temporary = self._temporary / uuid4().hex
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    temporary.replace(path)
                    break
                except FileNotFoundError:
                    # delete_prefix removed the empty folder in between.
                    if not temporary.exists():
                        raise
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _md5(self, file: BufferedReader) -> str:
        facts = os.fstat(file.fileno())
        identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        known = self._hashes.get(identity)
        if known is None:
            known = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            self._hashes[identity] = known
            while len(self._hashes) > _REMEMBERED:
                self._hashes.popitem(last=False)
        return known

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for leftover in self._temporary.iterdir():
            try:
                if time.time() - leftover.stat().st_mtime > _STALE_S:
                    leftover.unlink()
            except FileNotFoundError:
                # Another process sweeps or finishes the write at this moment.
                continue


def content_type_of(key: str) -> str:
    """Content type to serve the object with, by the key's extension; bytes if unknown."""
    return _CONTENT_TYPES.get(Path(key).suffix.lower(), "application/octet-stream")


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidKey(key)
    return key


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _call(call: Callable[[], T]) -> T:
    """Run ``call`` in a thread and turn the disk's errors into ours."""
    try:
        return await asyncio.to_thread(call)
    except OSError as error:
        raise StorageError(f"The storage directory failed: {error.strerror or error}.", transient=True) from error
