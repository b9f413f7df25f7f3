"""Room for the files of jobs on this machine's disk; what killed processes left there goes with the next one.

Each process has a folder with a lock that it holds while it lives. A folder whose lock can be taken belongs to nobody:
that is certain, where a folder's age is a guess.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

log = structlog.get_logger()

_LOCK = "lock"


class Scratch:
    """This process's folder. Making one sweeps those of the dead."""

    def __init__(self, root: Path | None = None) -> None:
        """``root`` holds the folders of all processes of this user; default: one in the system's temporary folder."""
        self._root = root or Path(tempfile.gettempdir()) / f"video-api-{os.getuid()}"
        self._root.mkdir(mode=0o700, exist_ok=True)
        _require_own(self._root)
        # Nobody sweeps between the making of a folder and the taking of its lock.
        with _locked(self._root / _LOCK):
            self._sweep()
            self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._root))
            # Held until this process ends, however it does. Children don't inherit it.
            self._lock = _take(self._folder / _LOCK, fcntl.LOCK_EX)

    @contextmanager
    def job(self) -> Iterator[Path]:
        """An empty folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="job-", dir=self._folder) as workdir:
            yield Path(workdir)

    def close(self) -> None:
        """Remove this process's folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def _sweep(self) -> None:
        for folder in self._root.iterdir():
            if folder.name == _LOCK:
                continue
            with suppress(FileNotFoundError):
                try:
                    lock = _take(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)
            log.info("scratch_swept", folder=str(folder))


def _require_own(folder: Path) -> None:
    """Others may have made it first, in a place where everybody may, to read or replace what we put there."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder that only this user can write to; remove it, or set TMPDIR")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _take(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _take(path: Path, how: int) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, how)
    except BaseException:
        os.close(lock)
        raise
    return lock
