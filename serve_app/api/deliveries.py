"""What was sent to webhooks, and what they answered; and sending it again."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from serve_app.api.auth import Maker, Reader
from serve_app.api.endpoint_schemas import DeliveryPage, DeliveryView
from serve_app.api.errors import DeliveryNotFound, Forbidden, InvalidRequest, Unauthorized, WebhookDisabled
from serve_app.api.problems import documented
from serve_app.api.schemas import QueryText
from serve_app.jobs.delivery_log import EndpointDisabled
from serve_app.services import ServicesOf

router = APIRouter(prefix="/api/v1/webhooks/deliveries", tags=["webhooks"])

DeliveryPath = Annotated[
    str, Path(description="`id` of the delivery.", pattern="^msg_[0-9a-f]{32}$", examples=["msg_" + "0" * 32])
]


@router.get(
    "",
    operation_id="list_deliveries",
    summary="List deliveries",
    response_description="A page of deliveries, newest first.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, DeliveryNotFound, InvalidRequest),
)
async def list_deliveries(
    caller: Reader,
    services: ServicesOf,
    job_id: Annotated[QueryText | None, Query(description="Only those about this job.")] = None,
    endpoint_id: Annotated[QueryText | None, Query(description="Only those to this webhook endpoint.")] = None,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    # Each has up to twenty attempts, with two kilobytes of what was answered.
    limit: Annotated[int, Query(ge=1, le=20, description="Most entries of a page.")] = 10,
) -> DeliveryPage:
    """What was sent to webhooks of this key and what they answered, newest first. It is kept as long as the job."""
    log = services.delivery_log
    if after is not None and await log.get(after, of_key=caller.sees) is None:
        raise DeliveryNotFound("after: no such delivery. Start again from the first page.", param="after")
    found = await log.list(job_id=job_id, endpoint_id=endpoint_id, after=after, limit=limit + 1, of_key=caller.sees)
    return DeliveryPage.of(found, limit)


@router.post(
    "/{delivery_id}/redeliver",
    operation_id="redeliver",
    summary="Send a delivery again",
    response_description="The delivery, which is to be sent.",
    status_code=202,
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, DeliveryNotFound, WebhookDisabled, InvalidRequest),
)
async def redeliver(delivery_id: DeliveryPath, caller: Maker, services: ServicesOf) -> DeliveryView:
    """Send a delivery again, now and by the whole schedule, under the same `webhook-id`. One that is being sent at the
    moment is left to that."""
    try:
        again = await services.delivery_log.redeliver(delivery_id, of_key=caller.sees)
    except EndpointDisabled:
        raise WebhookDisabled from None
    if again is None:
        raise DeliveryNotFound
    return DeliveryView.of(again)
