"""Every error leaves as one shape: RFC 9457 with a stable code, documented in OpenAPI."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
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
from serve_app.api.request_id import current_request_id
from serve_app.api.schemas import REQUESTS, Problem
from serve_app.storage.base import StorageError

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


def documented(*errors: type[VideoApiError]) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` argument of a route that may answer with these errors. Whoever shows a key may be told that he
    asks too often, whatever he asks for."""
    by_status: dict[int | str, dict[str, Any]] = {}
    rated: tuple[type[VideoApiError], ...] = (RateLimited,) if Forbidden in errors else ()
    for error in (*errors, *rated):
        text = f"`{error.code}`: {(error.__doc__ or '').strip()}"
        entry = by_status.setdefault(error.status, {"description": text, "content": {MEDIA_TYPE: _SCHEMA}})
        if text not in entry["description"]:
            entry["description"] += f"\n\n{text}"
    return by_status


_SCHEMA = {"schema": {"$ref": "#/components/schemas/Problem"}}


def answer(error: VideoApiError, base_url: str) -> JSONResponse:
    """The problem as the service at ``base_url`` says it."""
    body = Problem(
        type=uri(error.code, base_url),
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=current_request_id(),
        error=error.detail,
        param=error.param,
        errors=error.errors or None,
    )
    content = body.model_dump(exclude_none=True)
    return JSONResponse(content, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, base_url: str, routers: Sequence[APIRouter] = ()) -> None:
    """Route every exception through :func:`answer`. ``routers`` are those that the application includes."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, VideoApiError)
        return answer(error, base_url)

    async def validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(_invalid(error), base_url)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known: dict[int, type[VideoApiError]] = {404: NotFound, 405: MethodNotAllowed}
        kind = known.get(error.status_code, InvalidRequest)
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405:
            # Starlette names those of the first route of that path.
            headers["allow"] = ", ".join(sorted(_methods((app, *routers), request.url.path)))
        return answer(kind(None if error.status_code in known else str(error.detail), headers=headers), base_url)

    async def crash(_: Request, error: Exception) -> Response:
        log.error("request_crashed", exc_info=error)
        return answer(InternalError(), base_url)

    async def unavailable(request: Request, error: Exception) -> Response:
        if isinstance(error, StorageError) and not error.transient:
            return await crash(request, error)
        # A line and no stack: while a part is away, every request comes here.
        log.error("part_unavailable", error=f"{type(error).__name__}: {error}".splitlines()[0])
        return answer(Unavailable(), base_url)

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        VideoApiError: ours,
        RequestValidationError: validation,
        HTTPException: http,
        StorageError: unavailable,
        OperationalError: unavailable,
        PoolTimeout: unavailable,
        TimeoutError: unavailable,
        Exception: crash,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


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
