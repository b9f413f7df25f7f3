"""What runs in this process's sandbox."""

import psutil


def running() -> list[psutil.Process]:
    """Processes of ours at this moment, the keeper of the sandbox aside."""
    found = []
    for child in psutil.Process().children():
        if "deployments.sandbox.keeper" in " ".join(child.cmdline()):
            found += child.children(recursive=True)
        else:
            found.append(child)
    return found


def left() -> list[psutil.Process]:
    """The same once those that are ending have ended. A program that was killed is gone, but not yet who watched it."""
    return psutil.wait_procs(running(), timeout=10)[1]
