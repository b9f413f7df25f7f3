"""Why an input can't be used: stable codes that a client may rely on."""

from typing import Literal

Code = Literal[
    "source_unreachable",
    "source_rejected",
    "source_forbidden",
    "input_too_large",
    "unsupported_media",
    "invalid_media",
    "upload_missing",
    "too_many_pixels",
    "media_too_long",
]


class IntakeError(Exception):
    """The input can't be used. ``message`` tells the client what to do about it.

    ``transient`` says whether the same request may succeed later. It is a property of the case, not of the code: an
    unresolvable name and a refused connection are both ``source_unreachable``, yet only the second is worth a retry.
    """

    def __init__(self, code: Code, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.transient = transient

    def of_input(self, name: str) -> "IntakeError":
        """The same error, saying which input it is about."""
        return IntakeError(self.code, f"Input '{name}': {self.message}", transient=self.transient)
