"""For processes that hold secrets: closed to other processes of the same user."""

from deployments.sandbox import kernel


def close_to_others() -> None:
    """Let nobody but root read this process's memory and first environment, or attach to it, and dump no core.

    /proc/PID/stat and the like stay open, so Ray's dashboard still shows memory and CPU. Profilers and debuggers of the
    same user are refused (``py-spy``, the dashboard's "stack trace"), but not root's. It does not outlast an exec.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
