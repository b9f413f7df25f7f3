"""What a process takes upon itself before it touches a stranger's bytes, layer by layer. Standard library only.

Every layer is independent of the others and left out where the kernel or the container refuses it, so that the rest
still holds. What was granted when the machine was found out must be granted again: a layer is never lost in silence.
"""

import os
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from deployments.sandbox import kernel, landlock, seccomp
from deployments.sandbox.layers import LAYERS

#: ``nobody``: owns no file and no process of the service.
NOBODY = 65534
#: Processes and threads of one program. ffmpeg takes a few for each processor.
MOST_PROCESSES = 1024
#: The same where those of all programs count together.
MOST_PROCESSES_OF_ALL = 16 * 1024
#: Since then the limit on processes counts by user namespace rather than over everything a user runs.
_COUNTED_BY_NAMESPACE = (5, 14)
_NAMESPACES = {
    "network_namespace": kernel.CLONE_NEWNET,
    "ipc_namespace": kernel.CLONE_NEWIPC,
    "pid_namespace": kernel.CLONE_NEWPID,
}
#: Put on by :meth:`Confinement.isolate`; the others by :meth:`Confinement.restrict`.
_OUTER = (*_NAMESPACES, "uid", "user_namespace")


class Refused(Exception):
    """A layer that this machine grants could not be put on. The program is not run."""


class Confinement:
    """The layers of one program. ``expected`` is what this machine grants; None tries everything to find that out."""

    def __init__(self, expected: Iterable[str] | None) -> None:
        self._expected = None if expected is None else frozenset(expected)
        self.granted: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def isolate(self) -> None:
        """What holds for the children of this process: namespaces, and another user. Raises :class:`Refused`."""
        # As root, before root is given up: unprivileged user namespaces are switched off on many machines.
        self._leave_namespaces()
        self._put_on("uid", _become_nobody)
        self._put_on("user_namespace", _own_user_namespace)
        self._leave_namespaces()
        self._check(_OUTER)

    def restrict(self, allowed: Iterable[tuple[int, int]], *, program: bool) -> None:
        """What holds for this process itself, for good. Raises :class:`Refused`.

        ``allowed`` are rules of Landlock. ``program``: another program is executed afterwards.
        """
        self._put_on("process_limit", self._limit_processes)
        self._put_on("no_new_privs", lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
        self._put_on("landlock_files", lambda: _landlock(allowed))
        for layer, least in (("landlock_tcp", landlock.TCP), ("landlock_scopes", landlock.SCOPES)):
            self._put_on(layer, partial(_part_of_landlock, least))
        self._put_on("capabilities", kernel.drop_capabilities)
        self._put_on("seccomp", lambda: seccomp.install(seccomp.filter_calls(program=program)))
        self._check(layer for layer in LAYERS if layer not in _OUTER)

    def _put_on(self, layer: str, step: Callable[[], str | None]) -> None:
        if layer in self.granted or (self._expected is not None and layer not in self._expected):
            return
        try:
            self.granted[layer] = step() or ""
        except OSError as error:
            self.missing[layer] = error.strerror or str(error)
        else:
            self.missing.pop(layer, None)

    def _check(self, layers: Iterable[str]) -> None:
        for layer in layers:
            if self._expected is not None and layer in self._expected and layer not in self.granted:
                raise Refused(f"{layer} was granted before and is not now: {self.missing[layer]}")

    def _leave_namespaces(self) -> None:
        for layer, flag in _NAMESPACES.items():
            self._put_on(layer, partial(kernel.unshare, flag))

    def _limit_processes(self) -> None:
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        by_namespace = "user_namespace" in self.granted and release >= _COUNTED_BY_NAMESPACE
        if not by_namespace and "uid" not in self.granted:
            raise OSError(0, "it would count everything this user runs")
        most = MOST_PROCESSES if by_namespace else MOST_PROCESSES_OF_ALL
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def limit_resources(limits: Mapping[str, int | None]) -> None:
    """``cpu_s``, ``memory`` (bytes of address space), ``output`` (bytes of a file), ``files``; None is no limit."""
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["output"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, most in wanted.items():
        if most is not None:
            _, granted = resource.getrlimit(name)
            least = most if granted == resource.RLIM_INFINITY else min(most, granted)
            resource.setrlimit(name, (least, least))
    # A log that has reached its limit is a failed write to the program, not its end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _become_nobody() -> str:
    if os.geteuid() != 0:
        raise OSError(0, "the service is not root, so the program runs as the same user")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return str(NOBODY)


def _own_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    # After a change of user the files in /proc belong to root until this is said.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _landlock(allowed: Iterable[tuple[int, int]]) -> str:
    landlock.restrict(allowed)
    return f"version {landlock.version()}"


def _part_of_landlock(least: int) -> None:
    found = landlock.version()
    if found < least:
        raise OSError(0, f"needs version {least} of Landlock, the kernel has {found}")
