"""A program that tries everything a decoder could be made to try, and says what came of it. Standard library only.

In the sandbox it is called like a decoder (:func:`try_all`, :func:`waste`), or with chosen layers only, as a program of
its own: ``python hostile.py LAYER,LAYER... JSON``.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
#: Numbers of x86-64 and of 64-bit ARM.
_COLUMN = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
_CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "tgkill": (234, 131),
    "clone3": (435, 435),
    "execveat": (322, 281),
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "personality": (135, 92),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "settimeofday": (164, 170),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "kcmp": (312, 272),
    "fanotify_init": (300, 262),
    "seccomp": (317, 277),
    "timer_create": (222, 107),
    "mknodat": (259, 33),
    # Where these work they change what others do.
    "setns": (308, 268),
    "unshare": (272, 97),
    "chroot": (161, 51),
}

Result = str
#: What there is to harm: paths, addresses and a process of the service.
Targets = Mapping[str, Any]


def try_all(targets_json: str) -> None:
    """Answer on descriptor 1 what each attempt came to: ``done``, or the name of the error."""
    os.write(1, json.dumps(attempts(json.loads(targets_json))).encode())


def attempts(targets: Targets) -> dict[str, Result]:
    """Try everything. Those that could end this process come last."""
    results = {name: _try(lambda attempt=attempt: attempt(targets)) for name, attempt in _ATTEMPTS.items()}
    for name in _CALLS:
        if name not in results:
            results[name] = _try(lambda name=name: _call(name, *_ARGUMENTS.get(name, ())))
    results["descriptors"] = str(_open_descriptors())
    results["environment"] = ",".join(sorted(os.environ))
    results["thread"] = _try(_thread)
    return results


def waste(what: str) -> None:
    """Use up time, memory or output without end."""
    held = []
    while True:
        if what == "memory":
            held.append(bytearray(16 * 2**20))
        elif what == "output":
            with contextlib.suppress(OSError):
                os.write(1, b"x" * 4096)
        elif what == "sleep":
            signal.pause()


def hold() -> None:
    """Say on descriptor 1 that it runs, and never end by itself."""
    os.write(1, b"up")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


def import_late() -> None:
    """Need a module that nobody has loaded."""
    import antigravity  # type: ignore[import-untyped]  # noqa: F401 - would open a browser


def _try(attempt: Callable[[], object]) -> Result:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return type(error).__name__
    return "done"


def _call(name: str, *arguments: Any) -> int:
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in (*arguments, *[0] * 6)][:6]
    result = int(_libc.syscall(ctypes.c_long(_CALLS[name][_COLUMN]), *passed))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _read(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not os.read(descriptor, 1):
            raise OSError(errno.ENODATA, path)
    finally:
        os.close(descriptor)


def _create_and_remove(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def _connect(family: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        stream.connect(address)


def _bind() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()


def _datagram(address: list[Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", tuple(address))


def _fork() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _spawn(path: str) -> None:
    os.posix_spawn(path, [path, "-c", "exit 0"], {})


def _clone3() -> None:
    # struct clone_args with no flag but SIGCHLD: a fork.
    arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    if _call("clone3", ctypes.byref(arguments), 64) == 0:
        os._exit(0)


def _process_vm_readv(pid: int) -> None:
    room = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(room), 8)
    remote = (ctypes.c_void_p * 2)(ctypes.addressof(room), 8)
    _call("process_vm_readv", pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)


def _set_owner(pid: int) -> None:
    import fcntl

    reading, writing = os.pipe()
    try:
        fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
    finally:
        os.close(reading)
        os.close(writing)


def _push_into_terminal() -> None:
    import fcntl

    # TIOCSTI types into the terminal of whoever looks. With no terminal it is ENOTTY, unless it is refused before.
    fcntl.ioctl(1, 0x5412, b"x")


def _raise_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _limit_of(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))


def _thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def _open_descriptors() -> list[int]:
    found = []
    for number in range(3, 1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.append(number)
    return found


_ATTEMPTS: dict[str, Callable[[Targets], object]] = {
    # The service's secrets
    "read_environ": lambda t: _read(f"/proc/{t['pid']}/environ"),
    "read_memory": lambda t: os.close(os.open(f"/proc/{t['pid']}/mem", os.O_RDONLY)),
    "process_vm_readv": lambda t: _process_vm_readv(t["pid"]),
    "ptrace": lambda t: _call("ptrace", 16, t["pid"]),
    # Its files, and the system's
    "read_public_file": lambda t: _read(t["public"]),
    "read_private_file": lambda t: _read(t["private"]),
    "read_passwd": lambda t: _read("/etc/passwd"),
    "read_shadow": lambda t: _read("/etc/shadow"),
    "read_own_program": lambda t: _read(__file__),
    "list_folder": lambda t: os.listdir(t["folder"]),
    "create": lambda t: os.close(os.open(f"{t['folder']}/new", os.O_WRONLY | os.O_CREAT, 0o600)),
    "create_in_tmp": lambda t: _create_and_remove(f"/tmp/hostile-{os.getpid()}"),
    "chmod": lambda t: os.chmod(t["public"], 0o666),
    "utime": lambda t: os.utime(t["public"], (0, 0)),
    "overwrite": lambda t: os.close(os.open(t["public"], os.O_WRONLY | os.O_TRUNC)),
    "truncate": lambda t: os.truncate(t["public"], 0),
    "delete": lambda t: os.unlink(t["public"]),
    "rename": lambda t: os.rename(t["public"], t["public"] + ".old"),
    "link": lambda t: os.link(t["public"], t["public"] + ".link"),
    "symlink": lambda t: os.symlink("/etc/passwd", t["folder"] + "/symlink"),
    "mkdir": lambda t: os.mkdir(t["folder"] + "/made"),
    "mknodat": lambda t: _call("mknodat", -100, f"{t['folder']}/node".encode(), 0o10600, 0),
    "mkfifo": lambda t: os.mkfifo(t["folder"] + "/fifo"),
    # The network
    "tcp_connect": lambda t: _connect(socket.AF_INET, tuple(t["tcp"])),
    "tcp_bind": lambda t: _bind(),
    "udp_send": lambda t: _datagram(t["tcp"]),
    "unix_connect": lambda t: _connect(socket.AF_UNIX, t["unix"]),
    "abstract_connect": lambda t: _connect(socket.AF_UNIX, "\0" + t["abstract"]),
    "socketpair": lambda t: socket.socketpair(),
    # Other processes
    "fork": lambda t: _fork(),
    "clone3": lambda t: _clone3(),
    "spawn_shell": lambda t: _spawn("/bin/sh"),
    "kill_service": lambda t: os.kill(t["pid"], 0),
    "kill_all": lambda t: os.kill(-1, 0),
    "tgkill_service": lambda t: _call("tgkill", t["pid"], t["pid"], 0),
    "pidfd_open": lambda t: _call("pidfd_open", t["pid"], 0),
    "set_owner": lambda t: _set_owner(t["pid"]),
    "limit_of_service": lambda t: _limit_of(t["pid"]),
    "push_into_terminal": lambda t: _push_into_terminal(),
    # Itself
    "become_root": lambda t: os.setresuid(0, 0, 0),
    "raise_limit": lambda t: _raise_limit(),
    # Only tried by name, since it would end this program where it is possible: no such file means that it is.
    "execute_nothing": lambda t: os.execv("/nonexistent", ["x"]),
}
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "unshare": (0x10000000,),
    "setns": (0, 0),
    # Of no known type, so that nothing comes of it where it is not refused.
    "mount": (b"none", b"/tmp", b"nosuchfs", 0, None),
    "pivot_root": (b"/", b"/"),
    "chroot": (b"/tmp",),
    "open_tree": (-100, b"/", 1),
    "io_uring_setup": (1, ctypes.create_string_buffer(120)),
    "perf_event_open": (ctypes.create_string_buffer(112), 0, -1, -1, 0),
    "keyctl": (0, -3, 0),
    "add_key": (b"user", b"x", b"y", 1, -3),
    "memfd_create": (b"x", 0),
    "shmget": (0, 4096, 0o1600),
    "msgget": (0, 0o1600),
    "personality": (0,),
    "seccomp": (1, 0, None),
}


def main() -> None:
    """Take the layers that are named and no other, and try everything."""
    from deployments.sandbox.confinement import Confinement
    from deployments.sandbox.keeper import libraries

    names = [name for name in sys.argv[1].split(",") if name]
    confinement = Confinement(names)
    # As a watcher does: what is opened by name is opened before.
    rules = libraries()
    confinement.isolate()
    if (pid := os.fork()) == 0:
        confinement.restrict(rules, program=True)
        os.write(1, json.dumps(attempts(json.loads(sys.argv[2]))).encode())
        os._exit(0)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
