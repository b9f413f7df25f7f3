"""Where inputs lie while they are judged.

Every process has a folder of its own below the one that all share, and holds a lock in it for as long as it lives. So a
new one knows whose files nobody will come back for, however old or young they are, and removes them.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

log = structlog.get_logger()

_LOCK = "lock"
_PREFIX = "intake-"


class Workdir:
    """Folders below ``root``; those of processes that are gone are removed first.

    Raises OSError if the disk does.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root = root.resolve()
        # One at a time: between making a folder and locking it, it would look like nobody's.
        with (root / _LOCK).open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for folder in root.glob(f"{_PREFIX}*"):
                if _is_deserted(folder):
                    log.info("intake_swept", folder=str(folder))
                    shutil.rmtree(folder, ignore_errors=True)
            self._own = root / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._own.mkdir()
            # Never closed: the kernel lets go of it when this process has ended, in whichever way.
            self._lock = (self._own / _LOCK).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, gone when the block ends."""
        with TemporaryDirectory(dir=self._own, ignore_cleanup_errors=True) as name:
            yield Path(name)


def _is_deserted(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        # Of a version that had no locks, or half removed.
        return True
    return True
