"""Calls and numbers of the Linux kernel that Python has no names for. Standard library only."""

import ctypes
import os
import platform
from contextlib import suppress
from typing import Any

MACHINE = platform.machine()

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 4, 28, 38
#: Root is nobody special any more, for this process and all it becomes: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS locked.
SECUREBITS = 0x2F
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
AT_EMPTY_PATH = 0x1000

_CAPABILITY_VERSION_3 = 0x20080522
#: The numbers from 424 on are the same on every architecture.
_NUMBERS = {
    "x86_64": {"capset": 126, "seccomp": 317, "execveat": 322},
    "aarch64": {"capset": 91, "seccomp": 277, "execveat": 281},
}.get(MACHINE, {}) | {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(name: str, *arguments: Any) -> int:
    """Call the kernel. Raises OSError."""
    number = _NUMBERS.get(name)
    if number is None:
        raise OSError(38, f"{name} is not known on {MACHINE}")
    result = int(_libc.syscall(ctypes.c_long(number), *(_passed(value) for value in arguments)))
    if result < 0:
        _raise(name)
    return result


def prctl(option: int, value: int = 0) -> None:
    """Change what this process is. Raises OSError."""
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) < 0:
        _raise("prctl")


def unshare(flags: int) -> None:
    """Leave the namespaces shared with others. Raises OSError."""
    if _libc.unshare(flags) < 0:
        _raise("unshare")


def drop_capabilities() -> None:
    """Give up every capability, for good. Raises OSError."""
    # Else a root's next exec gets them back. Who may not ask for this has none to get back.
    with suppress(PermissionError):
        prctl(PR_SET_SECUREBITS, SECUREBITS)
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    syscall("capset", header, bytes(24))


def execute(program: int, arguments: list[str], environment: dict[str, str]) -> None:
    """Become the program that the descriptor ``program`` stands for. Returns only by OSError."""
    words = [word.encode() for word in arguments]
    settings = [f"{name}={value}".encode() for name, value in environment.items()]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    envp = (ctypes.c_char_p * (len(settings) + 1))(*settings, None)
    syscall("execveat", program, b"", argv, envp, AT_EMPTY_PATH)


def _passed(value: Any) -> Any:
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return ctypes.c_long(value) if isinstance(value, int) else value


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
