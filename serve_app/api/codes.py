"""Every code that a client may be shown, and what it means: of HTTP errors, of failed jobs, of jobs that wait.

Made of the places that define them, so that none is missing. One code may stand for the same trouble in more than one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, Field

from deployments.failure_code import FailureCode
from serve_app.api.errors import VideoApiError
from serve_app.api.server import REFUSALS
from serve_app.jobs.conditions import WaitCode

Place = Literal["http", "error_code", "wait_code"]


class Meaning(BaseModel):
    """What a code means where it stands."""

    place: Place = Field(description="`http`: a refused request. `error_code`, `wait_code`: fields of a job.")
    status: int | None = Field(None, description="Of the HTTP answer.")
    detail: str
    remedy: str | None = Field(None, description="What to do about it.")
    retried: bool | None = Field(None, description="Whether the service makes further attempts by itself first.")


class Explanation(BaseModel):
    """A code. Codes are stable: a client may act on them."""

    code: str
    type: str = Field(description="The URI of this page, as in problem details.")
    meanings: list[Meaning]


@dataclass(frozen=True)
class _Entry:
    code: str
    meaning: Meaning


def explanations(base_url: str) -> Mapping[str, Explanation]:
    """By code, in the order in which they are defined; the service is reached at ``base_url``."""
    return {
        code: Explanation(code=code, type=uri(code, base_url), meanings=list(meanings))
        for code, meanings in _meanings().items()
    }


def uri(code: str, base_url: str) -> str:
    """The ``type`` of problems with this code, where its explanation is."""
    return f"{base_url}/errors/{code}"


@cache
def _meanings() -> Mapping[str, tuple[Meaning, ...]]:
    found: dict[str, tuple[Meaning, ...]] = {}
    for entry in (*_refused(VideoApiError), *_not_http(), *_failed(), *_waiting()):
        found[entry.code] = (*found.get(entry.code, ()), entry.meaning)
    return found


def _refused(kind: type[VideoApiError]) -> Iterator[_Entry]:
    # The root is nobody's answer: what crashes is answered as InternalError.
    if kind is not VideoApiError:
        detail, remedy = _sentence(kind.__doc__), kind.remedy or None
        yield _Entry(kind.code, Meaning(place="http", status=kind.status, detail=detail, remedy=remedy))
    for below in kind.__subclasses__():
        yield from _refused(below)


def _not_http() -> Iterator[_Entry]:
    for refusal in REFUSALS:
        meaning = Meaning(place="http", status=refusal.status, detail=refusal.message, remedy=refusal.remedy)
        yield _Entry(refusal.code, meaning)


def _failed() -> Iterator[_Entry]:
    for code in FailureCode:
        remedy = _AFTER_FAILURE.get(code)
        meaning = Meaning(place="error_code", detail=code.meaning, remedy=remedy, retried=code.transient)
        yield _Entry(code.value, meaning)


def _waiting() -> Iterator[_Entry]:
    for code in WaitCode:
        yield _Entry(code.value, Meaning(place="wait_code", detail=code.meaning))


def _sentence(text: str | None) -> str:
    said = " ".join((text or "").split())
    return said if said.endswith(".") else f"{said}."


def title(meaning: Meaning) -> str:
    """Where it stands, in words."""
    if meaning.status is not None:
        return f"HTTP {meaning.status} {HTTPStatus(meaning.status).phrase}"
    return "A job that failed" if meaning.place == "error_code" else "A job that waits"


_AGAIN = "Submit the job again; if that fails as well, tell the operator the job's id."
_SMALLER = "`GET /api/v1/models` has the limits of each model's inputs."
#: What somebody can do whose job has failed so.
_AFTER_FAILURE: Mapping[FailureCode, str] = {
    FailureCode.SOURCE_UNREACHABLE: "Look whether the link opens from outside of your network, or upload the file.",
    FailureCode.SOURCE_REJECTED: "The link has to open without a login, over HTTP or with a valid certificate. "
    "Or upload the file.",
    FailureCode.SOURCE_FORBIDDEN: "Put the file where the internet can reach it, or upload it.",
    FailureCode.SOURCE_FAILED: "Retry the job that the message names, then this one.",
    FailureCode.UPLOAD_MISSING: "Upload the file again, to a new job.",
    FailureCode.INPUT_TOO_LARGE: _SMALLER,
    FailureCode.MEDIA_TOO_LONG: f"Cut it. {_SMALLER}",
    FailureCode.TOO_MANY_PIXELS: "Scale it down.",
    FailureCode.UNSUPPORTED_MEDIA: "The message says what is taken. Convert the file; its name does not count.",
    FailureCode.INVALID_MEDIA: "Export the file anew and play it to its end before you send it again.",
    FailureCode.NO_FACE_FOUND: "Send a video with a face seen from the front, or say where it is by `face_box`.",
    FailureCode.FACE_MISSING: "Cut those frames, or leave `on_missing_face` at its default.",
    FailureCode.FACE_BOX_OUTSIDE: "`face_box` counts in pixels of the upright picture.",
    FailureCode.DETECTOR_UNAVAILABLE: "Use another `detector`.",
    FailureCode.NOT_FINITE: "Try another seed or size.",
    FailureCode.ENCODE_FAILED: _AGAIN,
    FailureCode.OUT_OF_MEMORY: "Ask for a smaller or shorter video.",
    FailureCode.DEVICE_LOST: _AGAIN,
    FailureCode.TIMED_OUT: "Ask for a smaller or shorter video, or for fewer steps.",
    FailureCode.WORKER_LOST: _AGAIN,
    FailureCode.STORAGE_UNAVAILABLE: _AGAIN,
    FailureCode.OUTPUT_CORRUPT: _AGAIN,
    FailureCode.EXPIRED: "Submit it again; `expires_after` gives it longer to start.",
    FailureCode.RECIPE_UNAVAILABLE: "Leave `recipe` out, or ask for one that `GET /api/v1/models` lists.",
    FailureCode.REQUEST_TOO_LARGE: "Ask for a smaller or shorter video.",
    FailureCode.MODEL_UNAVAILABLE: "Use another model, or tell the operator.",
    FailureCode.WORKER_FAILED: "The message is the worker's own: show it to whoever runs it.",
    FailureCode.INTERNAL_ERROR: "Tell the operator the job's id.",
}
