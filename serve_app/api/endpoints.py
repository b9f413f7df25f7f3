"""Webhook endpoints of a key: make, look, change, delete, rotate their secrets, test them. And the secret of its jobs'
own ``webhook_url``.

Their ids begin with ``whe_``, so that what else is below ``/api/v1/webhooks/`` is taken for none.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from starlette.convertors import Convertor, register_url_convertor

from serve_app.api.auth import Maker, Reader
from serve_app.api.endpoint_schemas import (
    DeliveryView,
    EndpointChange,
    EndpointPage,
    EndpointView,
    NewEndpoint,
    SecretRotation,
    WebhookSecret,
)
from serve_app.api.errors import (
    Forbidden,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    TooManyWebhooks,
    Unauthorized,
    WebhookDisabled,
    WebhookNotFound,
)
from serve_app.api.problems import documented
from serve_app.api.schemas import QueryText
from serve_app.jobs.delivery_log import EndpointDisabled
from serve_app.jobs.endpoints import Endpoint
from serve_app.jobs.webhook_event import JobEvent
from serve_app.services import Services, ServicesOf


class _EndpointId(Convertor[str]):
    regex = "whe_[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("endpoint", _EndpointId())

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])
EndpointPath = Annotated[
    str, Path(description="`id` of the endpoint.", pattern="^whe_[0-9a-f]{32}$", examples=["whe_" + "0" * 32])
]


def _view(endpoint: Endpoint | None, services: Services) -> EndpointView:
    """With its secret. Raises WebhookNotFound if there is none."""
    if endpoint is None:
        raise WebhookNotFound
    return EndpointView.of(endpoint, services.signing_secrets.of_endpoint(endpoint.id, endpoint.generation))


def _chosen(events: list[JobEvent]) -> list[str]:
    """Each once, in the order in which they happen."""
    return [event.value for event in JobEvent if event in events]


@router.get(
    "/secret",
    operation_id="webhook_secret",
    summary="Get the secret of `webhook_url`",
    response_description="The secret.",
    responses=documented(Unauthorized, Forbidden),
)
async def webhook_secret(caller: Reader, services: ServicesOf) -> WebhookSecret:
    """The secret that the `webhook_url` of this key's jobs is signed with. Endpoints have secrets of their own."""
    return WebhookSecret(secret=services.signing_secrets.of_key(caller.key_id))


@router.post(
    "",
    operation_id="create_webhook",
    summary="Make a webhook endpoint",
    response_description="The endpoint with its secret.",
    status_code=201,
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, InvalidRequest, TooManyWebhooks, PayloadTooLarge, RequestTimeout),
)
async def create_webhook(body: NewEndpoint, caller: Maker, services: ServicesOf) -> EndpointView:
    """Have the events of this key's jobs told to a URL. The answer has the secret that they are signed with."""
    made = await services.endpoints.create(caller.key_id, str(body.url), _chosen(body.events))
    if made is None:
        raise TooManyWebhooks
    return _view(made, services)


@router.get(
    "",
    operation_id="list_webhooks",
    summary="List webhook endpoints",
    response_description="A page of endpoints, newest first, without their secrets.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, InvalidRequest),
)
async def list_webhooks(
    caller: Reader,
    services: ServicesOf,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most entries of a page.")] = 20,
) -> EndpointPage:
    """Webhook endpoints, newest first."""
    if after is not None and await services.endpoints.get(after, of_key=caller.sees) is None:
        raise WebhookNotFound("after: no such webhook endpoint. Start again from the first page.", param="after")
    found = await services.endpoints.list(after=after, limit=limit + 1, of_key=caller.sees)
    return EndpointPage.of(found, limit)


@router.get(
    "/{endpoint_id:endpoint}",
    operation_id="get_webhook",
    summary="Look at a webhook endpoint",
    response_description="The endpoint with its secret.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, InvalidRequest),
)
async def get_webhook(endpoint_id: EndpointPath, caller: Reader, services: ServicesOf) -> EndpointView:
    """A webhook endpoint with its secret."""
    return _view(await services.endpoints.get(endpoint_id, of_key=caller.sees), services)


@router.patch(
    "/{endpoint_id:endpoint}",
    operation_id="change_webhook",
    summary="Change a webhook endpoint",
    response_description="The endpoint as it is now, with its secret.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, InvalidRequest, PayloadTooLarge, RequestTimeout),
)
async def change_webhook(
    endpoint_id: EndpointPath, body: EndpointChange, caller: Maker, services: ServicesOf
) -> EndpointView:
    """Change a webhook endpoint, or enable it again."""
    changed = await services.endpoints.change(
        endpoint_id,
        url=None if body.url is None else str(body.url),
        events=None if body.events is None else _chosen(body.events),
        enabled=body.enabled,
        of_key=caller.sees,
    )
    return _view(changed, services)


@router.delete(
    "/{endpoint_id:endpoint}",
    operation_id="delete_webhook",
    summary="Delete a webhook endpoint",
    response_description="It is gone, and so is the log of its deliveries.",
    status_code=204,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, InvalidRequest),
)
async def delete_webhook(endpoint_id: EndpointPath, caller: Maker, services: ServicesOf) -> Response:
    """Delete a webhook endpoint, and the log of what was sent to it."""
    if not await services.endpoints.delete(endpoint_id, of_key=caller.sees):
        raise WebhookNotFound
    return Response(status_code=204)


@router.post(
    "/{endpoint_id:endpoint}/rotate",
    operation_id="rotate_webhook",
    summary="Change the secret of a webhook endpoint",
    response_description="The endpoint with its new secret.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, InvalidRequest, PayloadTooLarge, RequestTimeout),
)
async def rotate_webhook(
    endpoint_id: EndpointPath, caller: Maker, services: ServicesOf, body: SecretRotation | None = None
) -> EndpointView:
    """Make a new secret. For a day, or as long as you say, each delivery is signed with the one before as well."""
    overlap_s = (body or SecretRotation()).overlap_s
    return _view(await services.endpoints.rotate(endpoint_id, overlap_s, of_key=caller.sees), services)


@router.post(
    "/{endpoint_id:endpoint}/test",
    operation_id="test_webhook",
    summary="Test a webhook endpoint",
    response_description="The delivery of the `test` event, which is to be sent.",
    status_code=202,
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, WebhookNotFound, WebhookDisabled, InvalidRequest),
)
async def test_webhook(endpoint_id: EndpointPath, caller: Maker, services: ServicesOf) -> DeliveryView:
    """Send a signed `test` event now, by the way that all events go. The log of deliveries tells what came of it."""
    try:
        sent = await services.delivery_log.test(endpoint_id, of_key=caller.sees)
    except EndpointDisabled:
        raise WebhookDisabled from None
    if sent is None:
        raise WebhookNotFound
    return DeliveryView.of(sent)
