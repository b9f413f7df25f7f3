"""Other users than root, for tests that run as root on a machine where only root may reach the files."""

import os
import sys
from pathlib import Path

from deployments.sandbox import kernel


def become_ordinary() -> None:
    """Be user 1000 in a user namespace of one's own, without any capability; files of ours stay ours.

    Where this process is an ordinary user already nothing happens.
    """
    if os.geteuid() != 0:
        return
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")):
        Path(f"/proc/self/{name}").write_text(text)
    kernel.drop_capabilities()
    # Files in /proc are root's after a change of what one may do; what runs next is not closed by that.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


if __name__ == "__main__":
    become_ordinary()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
