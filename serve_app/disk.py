"""Room on our own disk. What strangers send must not fill it: the database may live there, too."""

import errno
import os
from pathlib import Path

#: Bytes that are left free.
RESERVE = 512 * 2**20


def require_room(folder: Path, size: int, reserve: int | None = None) -> None:
    """Raise OSError (``ENOSPC``) unless ``size`` bytes more would leave ``reserve`` bytes free where ``folder`` is."""
    reserve = RESERVE if reserve is None else reserve
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize - size < reserve:
        raise OSError(errno.ENOSPC, f"less than {(size + reserve) / 2**20:.0f} MiB are free", str(folder))
