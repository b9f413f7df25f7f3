"""What the service needs of an object store, and how such a store fails.

Keys are ours (``keys.py``), never a client's. Everything that a client or a GPU node touches goes
through presigned URLs, so neither ever holds a credential of the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: S3's own limit for a presigned URL, in seconds; the local store keeps to it so that both behave alike.
MAX_EXPIRY_S = 7 * 24 * 3600


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object."""

    #: Bytes.
    size: int
    #: Hex MD5; None where the store doesn't know it (an S3 multipart upload).
    md5: str | None


@dataclass(frozen=True)
class Listed:
    """An object in a listing."""

    key: str
    #: Unix time in seconds.
    modified: float


class StorageError(Exception):
    """The store could not do it. ``transient`` says whether another try may succeed."""

    code = "storage_unavailable"

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.message = message
        self.transient = transient


class ObjectMissing(StorageError):
    """Nothing is stored under the key."""

    code = "object_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"Nothing is stored under {key}.", transient=False)


class ObjectTooLarge(StorageError):
    """The object, or what is being written as one, is larger than the caller allows."""

    code = "object_too_large"

    def __init__(self, key: str, max_bytes: int) -> None:
        super().__init__(f"{key} is larger than {max_bytes} bytes.", transient=False)


class InvalidKey(StorageError):
    """The key is malformed, e.g. it climbs out of the store."""

    code = "invalid_key"

    def __init__(self, key: str) -> None:
        super().__init__(f"{key[:200]!r} is not a valid storage key.", transient=False)


class Storage(Protocol):
    """An object store. All methods raise :class:`StorageError` when the store fails."""

    async def presign_get(self, key: str, expires_s: int, *, filename: str | None = None) -> str:
        """URL that reads the object for ``expires_s`` seconds, saved as ``filename`` by a browser if given. No I/O."""
        ...

    async def presign_put(self, key: str, expires_s: int, content_type: str, size: int | None = None) -> str:
        """URL that takes a PUT of the object for ``expires_s`` seconds, with this ``Content-Type`` header.

        With ``size`` in bytes, an S3 store takes exactly so many; without, it sets no limit. No I/O.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo | None:
        """Size and MD5; None if there is no such object."""
        ...

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """Store the file. Readers see the old object or the whole new one, never a part."""
        ...

    async def copy(self, source: str, target: str) -> None:
        """Store the object once more, within the store. Raises :class:`ObjectMissing`."""
        ...

    async def get_file(self, key: str, path: Path, max_bytes: int) -> None:
        """Copy the object to ``path``. Raises :class:`ObjectMissing` or :class:`ObjectTooLarge`, leaving no file."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Delete everything below the folder ``prefix``, which ends with ``/``; how many objects that was."""
        ...

    async def page(self, prefix: str, after: str, limit: int) -> Sequence[Listed]:
        """The next objects below the folder ``prefix``, in the store's order, that come after the key ``after``.

        Fewer than ``limit`` only at the end.
        """
        ...

    async def check(self) -> None:
        """Raise unless the store can be reached and written to, as far as that can be told cheaply."""
        ...

    def public_url(self, key: str) -> str | None:
        """Permanent URL of the object, None when the store has no public base."""
        ...


def check_expiry(expires_s: int) -> int:
    """``expires_s`` itself; ValueError unless it is 1 s to 7 days."""
    if not 1 <= expires_s <= MAX_EXPIRY_S:
        raise ValueError(f"a presigned URL lives 1 to {MAX_EXPIRY_S} seconds, not {expires_s}")
    return expires_s


def check_folder(prefix: str) -> str:
    """``prefix`` itself; ValueError unless it names a folder, so that ``jobs/1`` can't take ``jobs/10`` along."""
    if not prefix.endswith("/") or not prefix.strip("/"):
        raise ValueError(f"a prefix names a folder and ends with a slash, unlike {prefix!r}")
    return prefix
