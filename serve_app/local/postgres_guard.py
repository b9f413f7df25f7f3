"""Ends an embedded PostgreSQL when its last user has gone: a program, run by path by ``serve_app.local.postgres``.

Every user holds a shared lock on one file. The kernel takes it away when that process ends, in order or by ``kill -9``;
whoever gets the exclusive lock knows that there is no user left, and keeps new ones waiting until the server has ended.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Else where it is used: a guard waits for days, and is small without.
    import psutil

#: Seconds for the server to end in order: its connections are dropped, what is committed is on disk.
STOP_S = 30.0


def lock_of_users(data: Path) -> Path:
    """The file that users of the server in ``data`` lock."""
    return data.with_name(f"{data.name}.users")


def stop(data: Path) -> None:
    """End the server whose data folder this is; returns when it has. Nothing happens if none runs."""
    import psutil

    try:
        # Its first line is the number of the process. That may be a stranger's by now, if the server was killed.
        server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        if str(data) not in server.cmdline():
            return
        # PostgreSQL's "fast" and "immediate"; the latter is a crash, from which it recovers at the next start.
        for number in (signal.SIGINT, signal.SIGQUIT):
            server.send_signal(number)
            if wait_until_gone([server], STOP_S):
                return
        server.kill()
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        return


def wait_until_gone(processes: Iterable["psutil.Process"], timeout_s: float) -> bool:
    """Whether they have all ended in time. Who waits to be reaped has: process 1 of a container may never do it."""
    import psutil

    def alive(process: "psutil.Process") -> bool:
        try:
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    give_up = time.monotonic() + timeout_s
    left = list(processes)
    while (left := [process for process in left if alive(process)]) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not left


def main() -> None:
    """``postgres_guard.py DATA``: until the last user has gone. One per data folder; a second one ends at once."""
    data = Path(sys.argv[1])
    # Nobody's child and in a session of its own: Ray ends the children of its workers, a terminal those of its shell.
    if os.fork():
        os._exit(0)
    os.setsid()
    with open(data.with_name(f"{data.name}.guard"), "w") as guard, open(lock_of_users(data), "a") as users:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        fcntl.flock(users, fcntl.LOCK_EX)
        stop(data)
        # Before the users' lock: who comes next has to find no guard, and start one.
        guard.close()


if __name__ == "__main__":
    main()
