"""What keeps Ray's processes away from the process that started them, which knows more than they do.

Code from any node runs in Ray's processes here. On a machine where the launcher is root, they are another user's: they
can neither read its memory, environment and files nor signal it. Anywhere else, memory and environment are closed.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: From the kernel's ``prctl.h``.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_LEAST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

#: Whether it finds the code that Ray's processes run, without running it.
_PROBE = """
import importlib.util, sys
sys.exit(" and ".join(name for name in ("ray", "cluster") if importlib.util.find_spec(name) is None) or 0)
"""


class Unsafe(Exception):
    """A user or a folder can't be what it should be; the message says what to do."""


def close_launcher() -> None:
    """Close this process to others: its memory, environment and descriptors, even to processes of the same user; and
    what it writes from now on. Call it early; its children inherit it until they start another program."""
    _prctl(_PR_SET_DUMPABLE, 0)
    os.umask(0o077)


@dataclass(frozen=True)
class RayUser:
    """Whom Ray's processes run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def find(cls, name: str) -> "RayUser | None":
        """None if there is no such user, or if it is this process's own. Only root may become another: Raises
        :class:`Unsafe`."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        if entry.pw_uid == os.geteuid():
            return None
        if os.geteuid() != 0:
            raise Unsafe(f"only root can run Ray as another user: start as root, or as {name} itself")
        return cls(name, entry.pw_uid, entry.pw_gid)

    def become(self) -> None:
        """Be that user, for good. For a child before it starts a program."""
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        # No program that belongs to root and says so makes it root again.
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def check(self, port: int) -> None:
        """Raises :class:`Unsafe` if that user can't run Python with our code, or not listen on that port. Blocks for a
        moment."""
        least = int(_LEAST_PORT.read_text()) if _LEAST_PORT.exists() else 1024
        if port < least:
            raise Unsafe(f"user {self.name} can't listen on port {port}: set PORT to {least} or more")
        try:
            done = subprocess.run(
                [sys.executable, "-c", _PROBE], preexec_fn=self.become, capture_output=True, text=True, timeout=60
            )
            said = done.stderr.strip().splitlines()
            reason = f"it does not find {said[-1] if said else 'Python'}" if done.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
        if reason:
            raise Unsafe(
                f"user {self.name} can't run Ray here: {reason}; let it read {sys.prefix} and {Path.cwd()}, "
                "or choose another with --ray-user"
            )


def own(folder: Path, user: RayUser | None, *, whole: bool = False) -> None:
    """Make the folder, if need be, and make it that user's alone (None: this process's); ``whole``: with what is in it,
    if it was root's until now. Raises :class:`Unsafe` if somebody else has it."""
    uid, gid = (user.uid, user.gid) if user is not None else (os.geteuid(), os.getegid())
    for above in reversed([parent for parent in folder.absolute().parents if not parent.exists()]):
        above.mkdir()
        # Whatever this process's own files are like: that user has to get through.
        above.chmod(0o755)
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
    except FileExistsError:
        raise Unsafe(f"{folder} is not a folder: remove it") from None
    if folder.lstat().st_uid not in (uid, os.geteuid()):
        # In a folder like /tmp it may be anybody's, or a link of theirs to something of ours.
        raise Unsafe(f"{folder} belongs to user {folder.lstat().st_uid}: remove it, or name another folder")
    found = folder.stat()
    if found.st_uid not in (uid, os.geteuid()):
        raise Unsafe(f"{folder.resolve()} belongs to user {found.st_uid}: name another folder")
    if whole and found.st_uid != uid:
        if folder.resolve() in (Path("/"), Path.home().resolve(), Path.cwd()):
            raise Unsafe(f"{folder} can't be given to {uid}: name a folder of its own")
        for path, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(path, name), uid, gid, follow_symlinks=False)
    if found.st_uid != uid:
        os.chown(folder, uid, gid)
    folder.chmod(0o700)


def begin_child(user: RayUser | None) -> None:
    """Runs in a child before its program starts: its user, and SIGTERM when the parent dies, however it dies."""
    if user is not None:
        user.become()
    # Becoming another user resets it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
