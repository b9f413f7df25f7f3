"""What a mirror copies from, and such a source on this machine. ``hub.py`` has the other one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Called with the bytes of a file that are done.
OnBytes = Callable[[int], object]


class MirrorError(Exception):
    """The weights can't be had or can't be mirrored; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a checkpoint."""

    #: Relative to the checkpoint's folder, with ``/``.
    path: str
    #: Bytes.
    size: int
    #: Hex, where the source knows it without reading the file.
    sha256: str | None


class Source(Protocol):
    """A checkpoint that can be copied file by file. What it does raises :class:`MirrorError`, or OSError."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        ...

    @property
    def revision(self) -> str | None:
        """With the same one its files are the same; None where nothing says so."""
        ...

    def files(self) -> Sequence[SourceFile]:
        """All there are."""
        ...

    def opened(self, file: SourceFile, on_bytes: OnBytes) -> AbstractContextManager[Path]:
        """The file on this machine's disk while the body runs. ``on_bytes`` is told if it has to be fetched first."""
        ...


@dataclass(frozen=True)
class LocalSource:
    """A folder with everything below it, or one file."""

    path: Path

    #: Files on a disk may change.
    revision = None

    @property
    def name(self) -> str:
        """Not the whole path: that says something about this machine and nothing about the weights."""
        return self.path.resolve().name

    def files(self) -> Sequence[SourceFile]:
        """In the order of their paths; links to files are followed."""
        paths = [self.path] if self.path.is_file() else sorted(path for path in self.path.rglob("*") if path.is_file())
        return [
            SourceFile(path=path.relative_to(self._folder).as_posix(), size=path.stat().st_size, sha256=None)
            for path in paths
        ]

    @contextmanager
    def opened(self, file: SourceFile, on_bytes: OnBytes) -> Iterator[Path]:
        """It is there already."""
        yield self._folder / file.path

    @property
    def _folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path
