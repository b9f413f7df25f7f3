"""Errors as OpenAI's clients read them: the same problem, whose ``error`` is an object."""

from collections.abc import Mapping

from pydantic import BaseModel, Field

from serve_app.api.errors import VideoApiError
from serve_app.api.problem_schemas import ProblemDetails

#: Where the protocol is spoken.
PREFIX = "/v1/"
#: The schema's name, for ``problems.documented``.
SHAPE = "OpenAIProblem"
#: What those clients call the kind of an error, by its status; all others are ``invalid_request_error``.
_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
#: Statuses with which they would ask again and be told the same.
_FINAL = frozenset({409, 501})


class ErrorObject(BaseModel):
    """What exceptions of the clients are made of."""

    message: str
    type: str = Field(description="The kind of error, e.g. `invalid_request_error`.")
    code: str
    param: str | None


class OpenAIProblem(ProblemDetails):
    """RFC 9457, with the error as OpenAI's clients read it beside."""

    error: ErrorObject


def error_object(error: VideoApiError) -> ErrorObject:
    """The error as its clients read it."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return ErrorObject(message=error.detail, type=kind, code=error.code, param=error.param)


def headers(error: VideoApiError) -> Mapping[str, str]:
    """Those of the error, and whether to ask again where its clients would guess wrong."""
    final = {"x-should-retry": "false"} if error.status in _FINAL else {}
    return {**final, **error.headers}
