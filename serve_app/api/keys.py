"""API keys: make, list, revoke, rotate; and what one's own may do."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import AfterValidator

from serve_app.access.key_ring import KeyRing
from serve_app.api.auth import Admin, Reader
from serve_app.api.errors import (
    Forbidden,
    InvalidRequest,
    KeyNotFound,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
)
from serve_app.api.key_schemas import IssuedKey, KeyPage, KeyRotation, KeyUse, KeyView, NewKey
from serve_app.api.problems import documented
from serve_app.api.schemas import QueryText
from serve_app.jobs.quota import use_of
from serve_app.services import ServicesOf

router = APIRouter(prefix="/api/v1", tags=["keys"])


def _possible(key_id: str) -> str:
    # PostgreSQL would refuse to look for it.
    if "\0" in key_id:
        raise KeyNotFound
    return key_id


async def _ring(request: Request) -> KeyRing:
    ring: KeyRing = request.app.state.key_ring
    return ring


KeyPath = Annotated[str, Path(description="`key_…`"), AfterValidator(_possible)]
RingOf = Annotated[KeyRing, Depends(_ring)]


@router.post(
    "/keys",
    status_code=201,
    operation_id="create_key",
    summary="Make a key",
    response_description="The key with its secret.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, InvalidRequest, PayloadTooLarge, RequestTimeout),
)
async def create_key(request: NewKey, _: Admin, ring: RingOf) -> IssuedKey:
    """Make a key. The answer has its secret, which nobody can look up later."""
    issued = await ring.store.create(request.name, request.scopes, request.limits.limits(), request.expires_in)
    await ring.changed()
    return IssuedKey.issued(issued)


@router.get(
    "/keys",
    operation_id="list_keys",
    summary="List keys",
    response_description="A page of keys, newest first.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, KeyNotFound, InvalidRequest),
)
async def list_keys(
    _: Admin,
    ring: RingOf,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most entries of a page.")] = 100,
) -> KeyPage:
    """Keys, newest first, with those that were revoked or have expired. No secrets."""
    last = None if after is None else await ring.store.get(after)
    if after is not None and last is None:
        raise KeyNotFound("after: no such key. Start again from the first page.", param="after")
    found = await ring.store.list(after=last, limit=limit + 1)
    data = [KeyView.of(key) for key in found[:limit]]
    return KeyPage(data=data, last_id=data[-1].key_id if data else None, has_more=len(found) > limit)


@router.post(
    "/keys/{key_id}/revoke",
    operation_id="revoke_key",
    summary="Revoke a key",
    response_description="The key as it is now.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, KeyNotFound, InvalidRequest),
)
async def revoke_key(key_id: KeyPath, _: Admin, ring: RingOf) -> KeyView:
    """Refuse a key from now on. Its jobs go on; admins see them. Revoking it again changes nothing."""
    key = await ring.store.revoke(key_id)
    if key is None:
        raise KeyNotFound("There is no such key.")
    await ring.changed()
    return KeyView.of(key)


@router.post(
    "/keys/{key_id}/rotate",
    operation_id="rotate_key",
    summary="Change the secret of a key",
    response_description="The key with its new secret.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, KeyNotFound, InvalidRequest, PayloadTooLarge, RequestTimeout),
)
async def rotate_key(key_id: KeyPath, request: KeyRotation, _: Admin, ring: RingOf) -> IssuedKey:
    """Give a key another secret, which the answer has. Its jobs and limits stay. With `overlap_s`, the last secret is
    good for so much longer; one from before that is not."""
    issued = await ring.store.rotate(key_id, request.overlap_s, request.expires_in)
    if issued is None:
        raise KeyNotFound
    await ring.changed()
    return IssuedKey.issued(issued)


@router.get(
    "/key",
    operation_id="get_own_key",
    summary="Look at your own key",
    response_description="What it may do, and what it uses of its limits.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden),
)
async def get_own_key(caller: Reader, services: ServicesOf) -> KeyUse:
    """What the key that is shown may do, and what it uses of its limits. `RateLimit` in the headers has the rate."""
    return KeyUse.of(caller, await use_of(services.engine, caller.key_id) if caller.key_id else None)
