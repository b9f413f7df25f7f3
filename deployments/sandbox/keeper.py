"""The program that runs other programs in the sandbox: one beside each process that needs it. Standard library only.

::

    service ──request, open files──▶ keeper ──fork──▶ watcher ──fork──▶ worker: confined, then the decoder
       └────────────── control socket ──────────────────┘

It is small and has one thread, so a fork is cheap and safe, which it is in no process of Ray. It never looks at a
stranger's bytes. The control socket is the program's life line: when the service closes it or dies, the watcher kills
the program; when the program ends, the watcher says how.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from deployments.sandbox import kernel, landlock, seccomp
from deployments.sandbox.confinement import Confinement, limit_resources

#: Bytes of a request, and descriptors with it.
REQUEST_BYTES, REQUEST_FILES = 64 * 1024, 16
#: Exit status of a worker that did not come to run its program.
NOT_RUN = 127
#: Descriptors of ours lie above this, out of the way of the program's.
_ABOVE = 100
#: What the dynamic linker reads, and what tells a C library how many processors there are.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu/online")
_LINKERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")


def main() -> None:
    """Say which layers there are, then answer requests until the service is gone."""
    # Ctrl-C is the service's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Watchers are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    service = socket.socket(fileno=os.dup(0))
    layers = find_out()
    # Made once, for all who are forked from here.
    for program in (True, False):
        with contextlib.suppress(OSError):
            seccomp.filter_calls(program=program)
    gc.freeze()
    service.send(json.dumps(layers).encode())
    while True:
        message, files, _, _ = socket.recv_fds(service, REQUEST_BYTES, REQUEST_FILES)
        if not message:
            return
        with contextlib.ExitStack() as opened:
            for file in files:
                opened.callback(os.close, file)
            _answer(json.loads(message), files, service, layers["granted"])


def find_out() -> dict[str, dict[str, str]]:
    """Put every layer on a process that does nothing, and say which held and why the others did not."""
    reading, writing = os.pipe()
    if not os.fork():
        confinement = Confinement(None)
        confinement.isolate()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not (worker := os.fork()):
            confinement.restrict([], program=True)
            os.write(writing, json.dumps({"granted": confinement.granted, "missing": confinement.missing}).encode())
            os._exit(0)
        os.waitpid(worker, 0)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    layers: dict[str, dict[str, str]] = json.loads(told)
    return layers


def _answer(request: dict[str, Any], files: list[int], service: socket.socket, granted: dict[str, str]) -> None:
    control = files[0]
    try:
        # Imported here, once, so that the worker finds all it needs in memory.
        function = _function(request["call"], request["imports"]) if "call" in request else None
        if not os.fork():
            service.close()
            _watch(request, function, files, granted)
    except Exception as error:
        _tell(control, {"failed": f"{type(error).__name__}: {error}"})


def _function(name: str, folders: Sequence[str]) -> Callable[..., None]:
    sys.path += [folder for folder in folders if folder not in sys.path]
    module, _, attribute = name.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), attribute)
    return function


def _watch(
    request: dict[str, Any], function: Callable[..., None] | None, files: list[int], granted: dict[str, str]
) -> NoReturn:
    """In the watcher: start the program, see it through, and say how it ended."""
    control, *given = files
    answer: dict[str, Any]
    try:
        answer = _run(request, function, control, given, granted)
    except BaseException as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    _tell(control, answer)
    os._exit(0)


def _run(
    request: dict[str, Any],
    function: Callable[..., None] | None,
    control: int,
    given: list[int],
    granted: dict[str, str],
) -> dict[str, Any]:
    ended, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # What is opened by name is opened before root and the file system are given up.
    program = None if function else os.open(request["run"][0], os.O_PATH | os.O_CLOEXEC)
    allowed = [] if program is None else [*libraries(), (program, landlock.READ_FILE | landlock.EXECUTE)]
    confinement = Confinement(("no_new_privs",) if request["trusted"] else granted)
    confinement.isolate()
    trouble, writing = os.pipe2(os.O_CLOEXEC)
    if not (worker := os.fork()):
        try:
            _work(request, function, given, program, allowed, confinement, writing)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(NOT_RUN)
    os.close(writing)
    for file in given:
        os.close(file)
    status, cpu_s = _await(worker, control, ended)
    # Closed by now, but for a grandchild on a machine without the layers that forbid one.
    os.set_blocking(trouble, False)
    with contextlib.suppress(BlockingIOError):
        if text := os.read(trouble, 4096):
            return {"failed": text.decode(errors="replace")}
    return {"status": status, "cpu_s": cpu_s}


def _await(worker: int, control: int, ended: int) -> tuple[int, float]:
    """Exit status (negative: a signal) and seconds of CPU. Kills the worker when the life line is cut."""
    poll = select.poll()
    poll.register(control, select.POLLIN | select.POLLHUP)
    poll.register(ended, select.POLLIN)
    flags = os.WNOHANG
    while True:
        pid, status, usage = os.wait4(worker, flags)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if any(file == control for file, _ in poll.poll()):
            # The group first: with no pid namespace its other processes would be left.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(worker, signal.SIGKILL)
            flags = 0


def _work(
    request: dict[str, Any],
    function: Callable[..., None] | None,
    given: list[int],
    program: int | None,
    allowed: list[tuple[int, int]],
    confinement: Confinement,
    trouble: int,
) -> None:
    """In the worker: confine this process and become the program, or call the function."""
    os.setsid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    program = program and _lift(program)
    trouble, *given = (_lift(file) for file in (trouble, *given))
    allowed = [(_lift(file), rights) for file, rights in allowed]
    for number, file in enumerate(given):
        os.dup2(file, number)
    _close_all_but(len(given), {trouble, *(file for file, _ in allowed), *([program] if program else [])})
    limit_resources(request["limits"])
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    confinement.restrict(allowed, program=function is None)
    if program is not None:
        kernel.execute(program, request["run"], request["environment"])
    os.close(trouble)
    assert function is not None
    _call(function, request["arguments"])


def _call(function: Callable[..., None], arguments: list[Any]) -> NoReturn:
    sys.meta_path[:] = [_NoImports()]
    try:
        function(*arguments)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os._exit(0)


class LateImport(BaseException):
    """A module that should have been imported before the file system was given up. Passes by ``except Exception``."""


class _NoImports:
    """Would otherwise look like an error in the stranger's file."""

    def find_spec(self, name: str, *_: object) -> None:
        raise LateImport(name)


def libraries() -> list[tuple[int, int]]:
    """Rules of Landlock for what any program needs to come up."""
    rules = [(path, landlock.READ_FILE) for path in _LIBRARIES]
    rules += [(path, landlock.READ_FILE | landlock.EXECUTE) for path in _LINKERS]
    found = []
    for path, rights in rules:
        with contextlib.suppress(FileNotFoundError):
            found.append((os.open(path, os.O_PATH | os.O_CLOEXEC), rights))
    return found


def _lift(file: int) -> int:
    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _ABOVE)


def _close_all_but(first: int, kept: set[int]) -> None:
    start = first
    for file in sorted(kept):
        os.closerange(start, file)
        start = file + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _tell(control: int, answer: dict[str, Any]) -> None:
    # Nobody may be listening any more.
    with contextlib.suppress(OSError):
        os.write(control, json.dumps(answer).encode())
