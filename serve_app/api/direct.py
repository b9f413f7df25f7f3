"""What makes most of the traffic, answered without FastAPI in the way: it takes longer than all the rest together.

Stands between the gate and FastAPI. Only what is plain is answered here: a job that is there, with no question beside
it; and a job that is asked for in a valid body, with URLs. All else, and every error of a client, is left to the
routes, which answer what is plain just the same (a test compares).
"""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.caller import Caller
from serve_app.access.caller import Scope as Right
from serve_app.api import generate, jobs
from serve_app.api.auth import caller_of
from serve_app.api.problems import failed
from serve_app.api.spool import arrived
from serve_app.services import Services

_JOB = re.compile(r"/api/v1/jobs/([0-9a-f-]{36})")
_GENERATE = "/api/v1/generate"
#: Headers with which an answer is not plain.
_ASKING_MORE = ("prefer", "idempotency-key")


class Direct:
    """``app`` behind a short cut."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = caller_of(scope)
        if caller is None or scope["query_string"]:
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and (found := _JOB.fullmatch(scope["path"])):
            await self._read(found[1], caller, scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] == _GENERATE:
            await self._create(caller, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _read(self, job_id: str, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if caller.may(Right.READ) and "prefer" not in Headers(scope=scope):
            try:
                answer = await jobs.read(job_id, caller, self._services)
            except Exception as error:
                answer = failed(error, self._services.settings.base_url, scope["path"])
        await (answer or self._app)(scope, receive, send)

    async def _create(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        headers = Headers(scope=scope)
        plain = headers.get("content-type") == "application/json" and not any(name in headers for name in _ASKING_MORE)
        # The gate has all of it.
        body = arrived(scope)
        if caller.may(Right.GENERATE) and plain and body is not None and isinstance(body.content, bytes):
            try:
                answer = await generate.create(body.content, caller, self._services)
            except Exception as error:
                answer = failed(error, self._services.settings.base_url, scope["path"])
        await (answer or self._app)(scope, receive, send)
