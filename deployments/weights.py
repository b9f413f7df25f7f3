"""Weights that an environment variable names: what a cheap look at the path tells, long before anything loads."""

import errno
from collections.abc import Callable
from pathlib import Path

#: What files begin with that stand for another: an error page of a web server, a Git LFS pointer.
_WEB_PAGE, _LFS_POINTER = b"<", b"version https://git-lfs"


class CheckpointError(Exception):
    """What the variable names is no checkpoint that this build can load; the message says what would be one."""


#: Looks at what a variable names, for milliseconds and without torch. Raises :class:`CheckpointError`.
WeightsCheck = Callable[[Path], None]


def check_file(path: Path, smallest: int = 1) -> None:
    """Refuse what is no checkpoint of one file by its first bytes and its size. ``smallest`` is in bytes."""
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist, so it is not a file"
        raise CheckpointError(f"{path} {why}; it has to be one, .pth or .safetensors")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is an empty file; download it again")
    if head.lstrip().startswith(_WEB_PAGE):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file itself")
    if is_pointer(head):
        raise CheckpointError(f"{path} is a Git LFS pointer; fetch the file itself with `git lfs pull`")
    size = path.stat().st_size
    if size < smallest:
        raise CheckpointError(f"{path} has {size} bytes, such a checkpoint at least {smallest}; download it again")


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins like this only says where Git LFS keeps the real one."""
    return head.startswith(_LFS_POINTER)


def reason_of(error: CheckpointError | OSError) -> str:
    """Why the look failed, for who has set the variable."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.filename} may not be read by this user"
    return str(error)
