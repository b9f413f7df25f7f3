"""What keeps Ray's processes away from the process that started them, which knows more than they do.

Code from any node runs in Ray's processes here. On a machine where the launcher is root, they are another user's: they
can neither read its memory, environment and files nor signal it. Anywhere else, memory and environment are closed.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import inherited

#: From the kernel's ``prctl.h``.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_LEAST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW

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
                [sys.executable, "-c", _PROBE],
                preexec_fn=self.become,
                # That user's other processes can read its variables.
                env=inherited(os.environ),
                capture_output=True,
                text=True,
                timeout=60,
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
    if it was root's until now. Raises :class:`Unsafe` if somebody else has it, or if a link is on the way to it.

    Whoever owns a folder may put a link into its place, even below ``/tmp``, and root at its next start would give away
    what that leads to. So no link is followed, and what is given away is what was looked at: the open folder, not its
    name. It may have another folder at that name a moment later; only that user's own processes will go there.
    """
    uid, gid = (user.uid, user.gid) if user is not None else (os.geteuid(), os.getegid())
    try:
        opened = _open(folder.absolute())
    except OSError as error:
        raise Unsafe(f"{folder} can't be used: {error.strerror}; name another folder") from None
    try:
        found = os.fstat(opened)
        if found.st_uid not in (uid, os.geteuid()):
            raise Unsafe(f"{folder} belongs to user {found.st_uid}: remove it, or name another folder")
        if found.st_uid != uid:
            if any(os.path.samestat(found, place.stat()) for place in (Path("/"), Path.home(), Path.cwd())):
                raise Unsafe(f"{folder} can't be given to {uid}: name a folder of its own")
            if whole:
                _give_content(opened, uid, gid)
            elif os.listdir(opened):
                raise Unsafe(f"{folder} is root's and not empty: empty it, or name a folder of its own")
            os.fchown(opened, uid, gid)
        os.fchmod(opened, 0o700)
    finally:
        os.close(opened)


def _open(folder: Path) -> int:
    """A descriptor of the folder, made with those above it if need be. From the root, step by step: none is a link."""
    steps = folder.parts[1:]
    here = os.open("/", _FOLDER | (os.O_PATH if steps else os.O_RDONLY))
    for count, name in enumerate(steps, start=1):
        above, last = here, count == len(steps)
        try:
            here = _enter(above, name, last)
        except NotADirectoryError:
            linked = stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
            wrong = "is a link: name the folder that it leads to" if linked else "is not a folder: remove it"
            raise Unsafe(f"{Path('/', *steps[:count])} {wrong}") from None
        finally:
            os.close(above)
    return here


def _enter(above: int, name: str, last: bool) -> int:
    # A folder above need not be one that we may list.
    flags = _FOLDER | (os.O_RDONLY if last else os.O_PATH)
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, flags, dir_fd=above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    if last:
        return os.open(name, flags, dir_fd=above)
    made = os.open(name, _FOLDER | os.O_RDONLY, dir_fd=above)
    # Whatever this process's own files are like: that user has to get through.
    os.fchmod(made, 0o755)
    return made


def _give_content(folder: int, uid: int, gid: int) -> None:
    """Root's files and folders in it go to that user. Links and the like are left, as they are of use to whoever owns
    the folder; so is what others have."""
    for _, folders, files, here in os.fwalk(dir_fd=folder):
        if os.fstat(here).st_uid not in (uid, os.geteuid()):
            folders.clear()
            continue
        for name in files:
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=here)
            except OSError:
                # A link, a socket, or gone.
                continue
            try:
                found = os.fstat(file)
                # With a second name it may be a file of the system, to which somebody made a hard link.
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
                    os.fchown(file, uid, gid)
            finally:
                os.close(file)
        if not os.path.samestat(os.fstat(here), os.fstat(folder)):
            os.fchown(here, uid, gid)


def begin_child(user: RayUser | None) -> None:
    """Runs in a child before its program starts: its user, and SIGTERM when the parent dies, however it dies."""
    if user is not None:
        user.become()
    # Becoming another user resets it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
