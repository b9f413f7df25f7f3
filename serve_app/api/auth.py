"""Who may call: bearer keys for clients, a shared secret for workers outside the cluster.

The secrets of the environment are compared in constant time; all other keys are looked up by their keyed hash.

The gate (``api/gate.py``) asks before a request's body is read. The routes ask once more whether it has, and for the
scope that stands in their signature: for OpenAPI, and so that a route which no gate stands before is closed.
"""

import secrets
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from serve_app.access.caller import BOOTSTRAP, Caller, Scope
from serve_app.access.key_ring import KeyRing, RingUnavailable
from serve_app.api.errors import Forbidden, Unauthorized, Unavailable, UnknownWorker
from serve_app.settings import Settings

_CHALLENGE = {"www-authenticate": "Bearer"}
#: As the original says it.
_NO_KEY = "Missing authorization header"
#: Where a request's scope has its :class:`Caller`, or ``WORKER``.
_SHOWN = "video_api.shown"
_WORKER = "worker"

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key (`va_…`), or the service's `API_KEY`. Where a key may ask only so often, answers carry "
    "`RateLimit-Policy` and `RateLimit`.",
)


_worker_secret = APIKeyHeader(
    name="X-Webhook-Secret",
    scheme_name="WebhookSecret",
    auto_error=False,
    description="The service's `WEBHOOK_SECRET`, for workers outside the cluster.",
)


def same(given: str, expected: str) -> bool:
    """Constant-time comparison of two secrets of any characters."""
    return secrets.compare_digest(given.encode(), expected.encode())


async def admit_client(scope: AsgiScope, settings: Settings, ring: KeyRing) -> None:
    """Look at the headers for an API key. Raises :class:`Unauthorized`; :class:`Unavailable` where that cannot be told
    now."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Unauthorized(_NO_KEY, headers=_CHALLENGE)
    if same(given, settings.api_key.get_secret_value()):
        scope[_SHOWN] = BOOTSTRAP
        return
    try:
        caller = await ring.find(given)
    except RingUnavailable:
        raise Unavailable(headers={"retry-after": "5"}) from None
    if caller is None:
        raise Unauthorized("Invalid API key", headers=_CHALLENGE)
    scope[_SHOWN] = caller


async def admit_worker(scope: AsgiScope, settings: Settings, ring: KeyRing) -> None:
    """Look at the headers for the secret of workers outside the cluster. Raises :class:`UnknownWorker`."""
    given = Headers(scope=scope).get("x-webhook-secret", "")
    if not same(given, settings.worker_secret):
        raise UnknownWorker
    scope[_SHOWN] = _WORKER


def caller_of(scope: AsgiScope) -> Caller | None:
    """Whose key the request has shown; None: it has shown none, or is a worker's."""
    shown = scope.get(_SHOWN)
    return shown if isinstance(shown, Caller) else None


def is_stranger(scope: AsgiScope) -> bool:
    """Whether the request has shown nothing: its route asks for nothing."""
    return _SHOWN not in scope


async def _require_key(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Caller:
    caller = caller_of(request.scope)
    if caller is None:
        raise Unauthorized(_NO_KEY, headers=_CHALLENGE)
    for scope in needed.scopes:
        if not caller.may(Scope(scope)):
            raise Forbidden(f"This needs a key with the scope `{scope}`.")
    return caller


async def _require_worker(request: Request, _: Annotated[str | None, Security(_worker_secret)] = None) -> None:
    if request.scope.get(_SHOWN) != _WORKER:
        raise UnknownWorker


#: A handler says in its signature who may call it: ``caller: Reader``.
Reader = Annotated[Caller, Security(_require_key, scopes=[Scope.READ.value])]
Maker = Annotated[Caller, Security(_require_key, scopes=[Scope.GENERATE.value])]
Admin = Annotated[Caller, Security(_require_key, scopes=[Scope.ADMIN.value])]
WorkerSecret = Depends(_require_worker)
