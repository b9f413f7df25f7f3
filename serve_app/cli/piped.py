"""An input that comes on standard input, kept as a file while it is uploaded: a store wants to know its size first."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: What stands for it on a command line.
DASH = "-"
_CHUNK = 256 * 1024


class NothingPiped(Exception):
    """There is no file on standard input; the message says why."""


@contextmanager
def piped() -> Iterator[Callable[[int], Path]]:
    """What the body calls, once, for the file: it has at most so many bytes, and is gone afterwards.

    Raises there:
        NothingPiped
    """
    with tempfile.TemporaryDirectory(prefix="video-api-") as folder:

        def read(max_bytes: int) -> Path:
            # None: whoever started this has closed it.
            if sys.stdin is None or sys.stdin.isatty():
                raise NothingPiped("nothing is piped in: cat FILE | video-api submit …")
            path, size = Path(folder) / "piped", 0
            with path.open("wb") as file:
                while chunk := sys.stdin.buffer.read(_CHUNK):
                    size += file.write(chunk)
                    if size > max_bytes:
                        raise NothingPiped(f"more than {max_bytes} bytes come in, and no more are taken")
            if not size:
                raise NothingPiped("standard input is empty")
            return path

        yield read
