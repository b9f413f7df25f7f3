"""Files from the head, kept: what is there and right is not fetched again, what was cut is gone on with."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.bootstrap.fault import Fault
from cluster.bootstrap.head import Head, HeadRefuses
from cluster.bootstrap.order import File

#: Seconds without a byte after which this gives up, and between two attempts.
PATIENCE_S = 600.0
PAUSE_S = 2.0


class Files:
    """A folder of what one head hands out."""

    def __init__(
        self, head: Head, folder: Path, on_progress: Callable[[int, int], None], pause_s: float = PAUSE_S
    ) -> None:
        """``on_progress(done, total)`` in bytes; ``pause_s`` between two attempts."""
        self.folder = folder
        self._head = head
        self._on_progress = on_progress
        self._pause_s = pause_s
        self._heard_at = time.monotonic()
        self._done = self._total = 0

    def fetch(self, files: Sequence[File]) -> None:
        """Make all of them be there. Raises Fault."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._done, self._total = 0, sum(file.size for file in files)
        for file in files:
            target = self.folder / file.name
            if not _is(target, file):
                self._fetch(file, target)
            else:
                self._add(file.size)

    def _fetch(self, file: File, target: Path) -> None:
        partial = target.with_name(f"{file.name}.part")
        self._heard_at = time.monotonic()
        for last in (False, True):
            self._fill(file, partial)
            if _is(partial, file):
                os.replace(partial, target)
                return
            # The bytes are useless, and nothing tells which of them: once more from the start.
            self._add(-partial.stat().st_size)
            partial.unlink()
            if last:
                raise Fault(f"{file.name}: what the head sends is not what it has announced")

    def _fill(self, file: File, partial: Path) -> None:
        """Until there is as much as there should be."""
        partial.touch()
        self._add(min(partial.stat().st_size, file.size))
        if partial.stat().st_size > file.size:
            os.truncate(partial, 0)
        while (offset := partial.stat().st_size) < file.size:
            try:
                self._append(file, partial, offset)
            except HeadRefuses as error:
                if error.reason.final:
                    raise Fault(f"{file.name}: {error}") from None
                self._wait(file, error)
            except OSError as error:
                self._wait(file, error)

    def _append(self, file: File, partial: Path, offset: int) -> None:
        with partial.open("ab") as out:
            for chunk in self._head.fetch(file.name, offset):
                out.write(chunk)
                self._heard_at = time.monotonic()
                self._add(len(chunk))

    def _add(self, amount: int) -> None:
        self._done += amount
        self._on_progress(self._done, self._total)

    def _wait(self, file: File, error: Exception) -> None:
        if time.monotonic() - self._heard_at > PATIENCE_S:
            raise Fault(f"{file.name}: {error}") from error
        print(f"bootstrap: {file.name}: {error}", flush=True)
        # The head is away or busy, and nothing here can tell when it is back.
        time.sleep(self._pause_s)


def _is(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
