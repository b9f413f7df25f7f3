"""Who may call: bearer keys for clients, a shared secret for workers outside the cluster. Compared in constant time.

The gate (``api/gate.py``) asks before a request's body is read. The routes ask once more whether it has, and for the
scope that stands in their signature: for OpenAPI, and so that a route which no gate stands before is closed.
"""

import secrets
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from serve_app.access.caller import BOOTSTRAP, Caller, Scope
from serve_app.api.errors import Forbidden, Unauthorized
from serve_app.settings import Settings

_CHALLENGE = {"www-authenticate": "Bearer"}
#: Where a request's scope has its :class:`Caller`, or ``WORKER``.
_SHOWN = "video_api.shown"
_WORKER = "worker"

_bearer = HTTPBearer(auto_error=False, description="An API key, or the service's `API_KEY`.")


def same(given: str, expected: str) -> bool:
    """Constant-time comparison of two secrets of any characters."""
    return secrets.compare_digest(given.encode(), expected.encode())


def admit_client(scope: AsgiScope, settings: Settings) -> None:
    """Look at the headers for an API key. Raises :class:`Unauthorized`."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Unauthorized("Missing authorization header", headers=_CHALLENGE)
    if not same(given, settings.api_key.get_secret_value()):
        raise Unauthorized("Invalid API key", headers=_CHALLENGE)
    scope[_SHOWN] = BOOTSTRAP


def admit_worker(scope: AsgiScope, settings: Settings) -> None:
    """Look at the headers for the secret of workers outside the cluster. Raises :class:`Unauthorized`."""
    given = Headers(scope=scope).get("x-webhook-secret", "")
    if not same(given, settings.worker_secret):
        raise Unauthorized("Invalid webhook secret")
    scope[_SHOWN] = _WORKER


def is_stranger(scope: AsgiScope) -> bool:
    """Whether the request has shown nothing: its route asks for nothing."""
    return _SHOWN not in scope


def caller_of(scope: AsgiScope) -> Caller | None:
    """Whose key the gate has seen."""
    shown = scope.get(_SHOWN)
    return shown if isinstance(shown, Caller) else None


async def _require_key(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Caller:
    caller = caller_of(request.scope)
    if caller is None:
        raise Unauthorized(headers=_CHALLENGE)
    for scope in needed.scopes:
        if not caller.may(Scope(scope)):
            raise Forbidden(f"This needs a key with the scope `{scope}`.")
    return caller


async def _require_worker(request: Request, x_webhook_secret: Annotated[str, Header()] = "") -> None:
    if request.scope.get(_SHOWN) != _WORKER:
        raise Unauthorized("Invalid webhook secret")


#: A handler says in its signature who may call it: ``caller: Reader``.
Reader = Annotated[Caller, Security(_require_key, scopes=[Scope.READ.value])]
Maker = Annotated[Caller, Security(_require_key, scopes=[Scope.GENERATE.value])]
Admin = Annotated[Caller, Security(_require_key, scopes=[Scope.ADMIN.value])]
WorkerSecret = Depends(_require_worker)
