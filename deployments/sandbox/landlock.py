"""Landlock: a process gives up the file system, TCP, and signals and abstract sockets of others. Standard library only.

Descriptors that are open already stay as they are: that is how a program gets its input and its output.
"""

import ctypes
import os
from collections.abc import Iterable

from deployments.sandbox.kernel import syscall

#: Least version of Landlock's interface for each part; the file system's is the first.
TCP, SCOPES = 4, 6
EXECUTE, READ_FILE = 1 << 0, 1 << 2
#: Bits of the file system's rights by the version that brought them.
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_BIND_AND_CONNECT_TCP = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_VERSION, _PATH_BENEATH = 1, 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Version of the kernel's interface, at least 1. Raises OSError where there is none."""
    return syscall("landlock_create_ruleset", None, 0, _VERSION)


def restrict(allowed: Iterable[tuple[int, int]]) -> None:
    """Leave this process nothing but ``allowed``: descriptors of files or folders (O_PATH), each with its rights.

    Needs ``no_new_privs``. Raises OSError.
    """
    found = version()
    files = sum(bits for since, bits in _RIGHTS.items() if found >= since)
    wanted = _Ruleset(
        files,
        _BIND_AND_CONNECT_TCP if found >= TCP else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if found >= SCOPES else 0,
    )
    # Older kernels know only the first fields.
    size = 24 if found >= SCOPES else 16 if found >= TCP else 8
    ruleset = syscall("landlock_create_ruleset", wanted, size, 0)
    try:
        for descriptor, rights in allowed:
            syscall("landlock_add_rule", ruleset, _PATH_BENEATH, _PathRule(rights & files, descriptor), 0)
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
