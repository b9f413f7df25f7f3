"""Bodies of errors."""

from collections.abc import Mapping

from pydantic import BaseModel


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    param: str | None = None
    errors: list[Mapping[str, str]] | None = None


class Problem(ProblemDetails):
    """RFC 9457. ``error`` repeats the message for clients of the original API."""

    error: str
