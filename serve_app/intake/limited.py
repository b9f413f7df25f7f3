"""Child side of :mod:`serve_app.intake.sandbox`: take limits on oneself, then become another program.

Run as a file by an isolated interpreter, hence the standard library only. Limits are set here, after the fork and in a
fresh process, since ``preexec_fn`` may deadlock in a parent with threads, as every Ray process is.

Usage: ``python -I -S limited.py CPU_SECONDS MEMORY_BYTES OUTPUT_BYTES PROGRAM [ARGUMENT...]``
"""

import os
import resource
import sys


def main() -> None:
    """Set the limits and exec."""
    cpu_s, memory, output = (int(text) for text in sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
