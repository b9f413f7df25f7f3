"""Every error leaves as one shape: RFC 9457 with a stable code, documented in OpenAPI."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Route

from serve_app.api.codes import uri
from serve_app.api.errors import (
    Forbidden,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    Unavailable,
    VideoApiError,
)
from serve_app.api.openai import error as openai
from serve_app.api.problem_schemas import ProblemDetails
from serve_app.api.request_id import current_request_id
from serve_app.api.schemas import REQUESTS
from serve_app.storage.base import StorageError

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


def documented(*errors: type[VideoApiError], shape: str = "Problem") -> dict[int | str, dict[str, Any]]:
    """The ``responses`` argument of a route that may answer with these errors, in the schema ``shape``. Whoever shows a
    key may be told that he asks too often, whatever he asks for."""
    schema = {"schema": {"$ref": f"#/components/schemas/{shape}"}}
    by_status: dict[int | str, dict[str, Any]] = {}
    rated: tuple[type[VideoApiError], ...] = (RateLimited,) if Forbidden in errors else ()
    for error in (*errors, *rated):
        text = f"`{error.code}`: {(error.__doc__ or '').strip()}"
        entry = by_status.setdefault(error.status, {"description": text, "content": {MEDIA_TYPE: schema}})
        if text not in entry["description"]:
            entry["description"] += f"\n\n{text}"
    return by_status


def answer(error: VideoApiError, base_url: str, path: str) -> Response:
    """The problem as the service at ``base_url`` says it to who has asked for ``path``."""
    details = ProblemDetails(
        type=uri(error.code, base_url),
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=current_request_id(),
        param=error.param,
        errors=error.errors or None,
    )
    content, headers = details.model_dump(exclude_none=True), error.headers
    if path.startswith(openai.PREFIX):
        content["error"] = openai.error_object(error).model_dump()
        headers = dict(openai.headers(error))
    else:
        content["error"] = error.detail
    # It may repeat what a client has said, in which half a character may be: that has no bytes.
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return Response(body, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)


def failed(error: Exception, base_url: str, path: str) -> Response:
    """The answer to whatever went wrong with a request for ``path``."""
    match error:
        case VideoApiError():
            return answer(error, base_url, path)
        case RequestValidationError():
            return answer(_invalid(error), base_url, path)
        case HTTPException():
            known: dict[int, type[VideoApiError]] = {404: NotFound, 405: MethodNotAllowed}
            kind = known.get(error.status_code, InvalidRequest)
            text = None if error.status_code in known else str(error.detail)
            return answer(kind(text, headers=error.headers), base_url, path)
        case (
            StorageError(transient=True)
            | OperationalError()
            | psycopg.OperationalError()
            | PoolTimeout()
            | TimeoutError()
        ):
            # A line and no stack: while a part is away, every request comes here.
            log.error("part_unavailable", error=f"{type(error).__name__}: {error}".splitlines()[0])
            return answer(Unavailable(), base_url, path)
        case _:
            log.error("request_crashed", exc_info=error)
            return answer(InternalError(), base_url, path)


def install(app: FastAPI, base_url: str, routers: Sequence[APIRouter] = ()) -> None:
    """Route every exception through :func:`failed`. ``routers`` are those that the application includes."""

    async def handle(request: Request, error: Exception) -> Response:
        found = failed(error, base_url, request.scope["path"])
        if found.status_code == 405:
            # Starlette names those of the first route of that path.
            found.headers["allow"] = ", ".join(sorted(_methods((app, *routers), request.url.path)))
        return found

    kinds = (
        VideoApiError,
        RequestValidationError,
        HTTPException,
        StorageError,
        OperationalError,
        psycopg.OperationalError,
        PoolTimeout,
        TimeoutError,
        Exception,
    )
    for kind in kinds:
        app.add_exception_handler(kind, handle)


def _methods(routers: Iterable[FastAPI | APIRouter], path: str) -> set[str]:
    """All that some route takes at ``path``."""
    routes = (route for router in routers for route in router.routes if isinstance(route, Route))
    return {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}


def _invalid(error: RequestValidationError) -> InvalidRequest:
    """Names each field the way the client wrote it, without the union's internals."""
    faults = []
    for item in error.errors():
        # ("body", "ltx2", "duration") → "duration"; the second is the tag of the union.
        path = [str(part) for part in item["loc"][1:] if str(part) not in REQUESTS]
        if item["type"].startswith("union_tag"):
            path = ["model"]
        elif item["type"] == "json_invalid":
            # What follows "body" is a position in the text.
            path = []
        faults.append({"param": ".".join(path), "message": item["msg"], "type": item["type"]})
    first = faults[0]
    detail = f"{first['param']}: {first['message']}" if first["param"] else first["message"]
    return InvalidRequest(detail, param=first["param"] or None, errors=faults)
