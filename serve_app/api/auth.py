"""Who may call: bearer keys for clients, a shared secret for workers outside the cluster. Compared in constant time.

The gate (``api/gate.py``) asks before a request's body is read. The routes ask once more whether it has: for OpenAPI,
and so that a route which no gate stands before is closed.
"""

import secrets
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import Scope

from serve_app.api.errors import Unauthorized
from serve_app.settings import Settings

_CHALLENGE = {"www-authenticate": "Bearer"}
#: Where a request's scope says what it has shown.
_SHOWN = "video_api.shown"

_bearer = HTTPBearer(auto_error=False, description="The service's `API_KEY`.")


def same(given: str, expected: str) -> bool:
    """Constant-time comparison of two secrets of any characters."""
    return secrets.compare_digest(given.encode(), expected.encode())


def admit_client(scope: Scope, settings: Settings) -> None:
    """Look at the headers for an API key. Raises :class:`Unauthorized`."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Unauthorized("Missing authorization header", headers=_CHALLENGE)
    if not same(given, settings.api_key.get_secret_value()):
        raise Unauthorized("Invalid API key", headers=_CHALLENGE)
    scope[_SHOWN] = "key"


def admit_worker(scope: Scope, settings: Settings) -> None:
    """Look at the headers for the secret of workers outside the cluster. Raises :class:`Unauthorized`."""
    given = Headers(scope=scope).get("x-webhook-secret", "")
    if not same(given, settings.worker_secret):
        raise Unauthorized("Invalid webhook secret")
    scope[_SHOWN] = "worker"


def is_stranger(scope: Scope) -> bool:
    """Whether the request has shown nothing: its route asks for nothing."""
    return _SHOWN not in scope


async def _require_key(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None
) -> None:
    if request.scope.get(_SHOWN) != "key":
        raise Unauthorized(headers=_CHALLENGE)


async def _require_worker(request: Request, x_webhook_secret: Annotated[str, Header()] = "") -> None:
    if request.scope.get(_SHOWN) != "worker":
        raise Unauthorized("Invalid webhook secret")


ApiKey = Depends(_require_key)
WorkerSecret = Depends(_require_worker)
