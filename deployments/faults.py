"""Why a run ended without a video: the codes a replica reports.

``Fault`` is the only exception an engine raises on purpose; anything else is a defect and is reported as
``internal_error`` (transient, so that a lucky second try is given).
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Fault(Exception):
    """The run cannot go on. ``transient`` says whether another attempt may succeed."""

    def __init__(self, code: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = transient

    def of_input(self, name: str) -> "Fault":
        """The same fault, saying which input it is about."""
        return Fault(self.code, f"Input '{name}': {self.message}", transient=self.transient)


@contextmanager
def about_input(name: str) -> Iterator[None]:
    """Faults of the body are about this input."""
    try:
        yield
    except Fault as fault:
        raise fault.of_input(name) from fault


class OutOfMemory(Fault):
    """The device ran out of memory. The replica frees what it can; the job may try once more."""

    def __init__(self, message: str) -> None:
        super().__init__("out_of_memory", message, transient=True)


class DeviceLost(Fault):
    """The CUDA context is dead: this process cannot compute any more and has to be replaced."""

    def __init__(self, message: str) -> None:
        super().__init__("device_lost", message, transient=True)
