"""How code says that a job cannot go on.

``Fault`` is the only exception an engine raises on purpose; anything else is a defect and is reported as
``internal_error`` (transient, so that a lucky second try is given).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from deployments.failure_code import FailureCode


class Fault(Exception):
    """The job cannot go on. ``message`` tells the client what to do about it.

    ``transient`` says whether another attempt may succeed; without it, the code's own rule does.
    """

    def __init__(self, code: FailureCode, message: str, *, transient: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = code.transient if transient is None else transient

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
        super().__init__(FailureCode.OUT_OF_MEMORY, message)


class DeviceLost(Fault):
    """The CUDA context is dead: this process cannot compute any more and has to be replaced."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureCode.DEVICE_LOST, message)
