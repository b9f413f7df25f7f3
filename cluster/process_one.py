"""Being process 1 of a container: pass signals on, reap what others leave behind.

The work happens in a child, so that waiting for strangers never takes an exit status from whoever waits for his own.
Not ``tini``: our command is also started in images that lack it, and where a platform's start command goes around the
image's entry point.
"""

import os
import signal
from collections.abc import Callable

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def run_as_init(work: Callable[[], int]) -> int:
    """The exit status of ``work``. Runs it in a child if this process is number 1, else here.

    Call it before any thread exists. When process 1 has returned and exits, the kernel ends whatever is left.
    """
    if os.getpid() != 1:
        return work()
    child = os.fork()
    if child == 0:
        # Without interpreter shutdown of the copied parent: only what the work itself left to flush.
        return work()
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except InterruptedError:
            continue
        if pid == child:
            return os.waitstatus_to_exitcode(status) % 256
