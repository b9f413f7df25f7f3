"""Request ids: accepted or made up, echoed, and bound to every log line of the request."""

import re
import time

import structlog
import uuid_utils
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.auth import caller_of

log = structlog.get_logger()

#: Beginnings of paths that nobody gets far at without permission.
_OURS = ("/api/", "/v1/", "/webhook/", "/files/")
#: Characters of a path that the log shows.
_PATH_SHOWN = 200

_ACCEPTED = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def current_request_id() -> str:
    """The id of the request being handled."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


class RequestIdMiddleware:
    """Pure ASGI, so that streamed bodies stay streamed. Also writes the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ACCEPTED.fullmatch(given) else uuid_utils.uuid7().hex
        began = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                milliseconds = round((time.monotonic() - began) * 1000, 1)
                # What strangers ask must not fill the log: it is for those who had a key, a secret or a link.
                shown = scope["path"].startswith(_OURS) and message["status"] not in (401, 403)
                level = log.info if shown else log.debug
                path = scope["path"][:_PATH_SHOWN]
                caller = caller_of(scope)
                whose = {"key_id": caller.key_id} if caller is not None and caller.key_id else {}
                level("request", method=scope["method"], path=path, status=message["status"], ms=milliseconds, **whose)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
