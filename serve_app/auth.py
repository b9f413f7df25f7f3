"""Who may call: bearer keys for clients, a shared secret for workers outside the cluster. Compared in constant time."""

import secrets
from typing import Annotated

from fastapi import Depends, Header, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.errors import Unauthorized
from serve_app.services import ServicesOf

_bearer = HTTPBearer(auto_error=False, description="The service's `API_KEY`.")


def same(given: str, expected: str) -> bool:
    """Constant-time comparison of two secrets of any characters."""
    return secrets.compare_digest(given.encode(), expected.encode())


def require_api_key(
    services: ServicesOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    challenge = {"www-authenticate": "Bearer"}
    if credentials is None:
        raise Unauthorized("Missing authorization header", headers=challenge)
    if not same(credentials.credentials, services.settings.api_key.get_secret_value()):
        raise Unauthorized("Invalid API key", headers=challenge)


def require_webhook_secret(services: ServicesOf, x_webhook_secret: Annotated[str, Header()] = "") -> None:
    if not same(x_webhook_secret, services.settings.webhook_secret.get_secret_value()):
        raise Unauthorized("Invalid webhook secret")


ApiKey = Depends(require_api_key)
WorkerSecret = Depends(require_webhook_secret)
