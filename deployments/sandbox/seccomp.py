"""seccomp: the system calls that a decoder needs, and no others. Standard library only.

A list of what is allowed, since a list of what is dangerous is out of date with the next kernel. A call that is not on
it answers ENOSYS, as on a kernel that has never heard of it: C libraries try newer calls first and fall back then, so a
new C library does not break on an old list.

Left out on purpose, among others: sockets, any process but threads, signals to others, ptrace, the memory of others,
namespaces, mounts, keys, bpf, perf, io_uring, userfaultfd, memfd, names in the file system (create, delete, rename,
link, chmod), timers, IPC, priorities. Opening a file for writing is refused, too: output goes to descriptors that are
given.
"""

import ctypes
import struct
from collections.abc import Iterator
from functools import cache

from deployments.sandbox.kernel import AT_EMPTY_PATH, MACHINE, syscall

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _EINVAL, _ENOSYS = 1, 22, 38
_SET_MODE_FILTER = 1
#: Kernels before 5.16 would switch a mitigation on that slows all memory down to protect a process from itself. Known
#: since 4.17.
_SPEC_ALLOW = 4
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: Numbers on x86-64 and on 64-bit ARM; None where there is no such call. The busiest come first.
_CALLS: dict[str, tuple[int, int | None]] = {
    "futex": (202, 98),
    "read": (0, 63),
    "write": (1, 64),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "madvise": (28, 233),
    "mprotect": (10, 226),
    "lseek": (8, 62),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "sched_yield": (24, 124),
    "brk": (12, 214),
    "mremap": (25, 216),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "rt_sigprocmask": (14, 135),
    "rt_sigaction": (13, 134),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_getres": (229, 114),
    "time": (201, None),
    "times": (100, 153),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "fadvise64": (221, 223),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "arch_prctl": (158, None),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getcpu": (309, 168),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
}

#: Calls allowed where an argument, masked, has one of the values: name, numbers, argument, mask, values.
_CHECKED: tuple[tuple[str, tuple[int, int | None], int, int, tuple[int, ...]], ...] = (
    # Threads, in the namespaces that are ours (the mask: CLONE_THREAD and all CLONE_NEW*). No process.
    ("clone", (56, 220), 0, 0x7E030000, (0x00010000,)),
    # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory.
    ("prctl", (157, 167), 0, 0xFFFFFFFF, (15, 16, 0x53564D41)),
    # TCGETS and TIOCGWINSZ (is this a terminal?), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    ("ioctl", (16, 29), 1, 0xFFFFFFFF, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # Duplicates, flags, the size of a pipe; not F_SETOWN, which sends signals.
    ("fcntl", (72, 25), 1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 1030, 1031, 1032)),
    # Of this process.
    ("prlimit64", (302, 261), 0, 0xFFFFFFFF, (0,)),
)
#: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, O_PATH, O_TMPFILE.
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o10000000 | 0o20000000
#: What a program needs on top to come up: its libraries, and to be executed by descriptor, never by name.
_STARTING: tuple[tuple[str, tuple[int, int | None], int, int, tuple[int, ...]], ...] = (
    ("openat", (257, 56), 2, _WRITING, (0,)),
    ("open", (2, None), 1, _WRITING, (0,)),
    ("execveat", (322, 281), 4, 0xFFFFFFFF, (AT_EMPTY_PATH,)),
)

_LOAD, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


@cache
def filter_calls(*, program: bool, machine: str = MACHINE) -> bytes:
    """The filter in BPF. ``program``: whether another program is still to be executed. Raises OSError (unsupported)."""
    if machine not in _ARCHITECTURES:
        raise OSError(_ENOSYS, f"no list of system calls for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    code = [
        _op(_LOAD, 4),
        _op(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _op(_RETURN, _KILL_PROCESS),
        _op(_LOAD, 0),
    ]
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            code += [_op(_JUMP_EQUAL, number, 0, 1), _op(_RETURN, _ALLOW)]
    for _, numbers, argument, mask, values in (*_CHECKED, *(_STARTING if program else ())):
        if (number := numbers[column]) is not None:
            check = list(_check(argument, mask, values))
            code += [_op(_JUMP_EQUAL, number, 0, len(check)), *check]
    code.append(_op(_RETURN, _ERRNO | _ENOSYS))
    return b"".join(code)


def install(code: bytes) -> None:
    """Put this process under a filter for good. Needs ``no_new_privs``. Raises OSError."""
    program = _Program(len(code) // 8, code)
    try:
        syscall("seccomp", _SET_MODE_FILTER, _SPEC_ALLOW, program)
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        syscall("seccomp", _SET_MODE_FILTER, 0, program)


def _check(argument: int, mask: int, values: tuple[int, ...]) -> Iterator[bytes]:
    # The lower half of the argument is all the kernel looks at in these calls.
    yield _op(_LOAD, 16 + 8 * argument)
    yield _op(_AND, mask)
    for value in values:
        yield _op(_JUMP_EQUAL, value, 0, 1)
        yield _op(_RETURN, _ALLOW)
    yield _op(_RETURN, _ERRNO | _EPERM)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
