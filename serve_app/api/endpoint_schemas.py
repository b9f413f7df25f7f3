"""Bodies of requests and responses about webhook endpoints and what was sent to them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, HttpUrl

from serve_app.api.body import RequestBody
from serve_app.jobs.delivery_log import Delivery
from serve_app.jobs.endpoints import Endpoint
from serve_app.jobs.webhook_event import ENDS, JobEvent

DAY_S = 24 * 3600

EventChoice = Annotated[
    list[Annotated[JobEvent, Field(strict=False)]],
    Field(min_length=1, max_length=len(JobEvent), description="What it is told of the key's jobs."),
]
DeliveryState = Literal["pending", "sending", "delivered", "failed"]


class NewEndpoint(RequestBody):
    """Where to tell what."""

    url: HttpUrl = Field(description="Gets a signed POST for each event.")
    events: EventChoice = Field(default_factory=lambda: list(ENDS))


class EndpointChange(RequestBody):
    """What is left out stays as it is."""

    url: HttpUrl | None = Field(None, description="What is owed to the old one goes there, too.")
    events: EventChoice | None = None
    enabled: bool | None = Field(
        None, description="`true` after a receiver has answered 410; `false`: it is told nothing, and owed nothing."
    )


class SecretRotation(RequestBody):
    """How long the secret before is good beside the new one."""

    overlap_s: int = Field(
        DAY_S,
        ge=0,
        le=7 * DAY_S,
        description="So long each delivery is signed with both; change your receiver by then.",
    )


class EndpointView(BaseModel):
    """A webhook endpoint."""

    id: str
    url: str
    events: list[str]
    enabled: bool
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    created_at: datetime
    previous_secret_until: datetime | None = Field(
        None, description="The secret before the last `rotate` is good until then; absent if none was rotated."
    )
    secret: str | None = Field(
        None,
        description="Verify the `webhook-signature` header with it, by any Standard Webhooks library. Not in lists.",
    )

    @classmethod
    def of(cls, endpoint: Endpoint, secret: str | None = None) -> "EndpointView":
        return cls(
            id=endpoint.id,
            url=endpoint.url,
            events=list(endpoint.events),
            enabled=endpoint.disabled_at is None,
            disabled_at=endpoint.disabled_at,
            disabled_reason=endpoint.disabled_reason,
            created_at=endpoint.created_at,
            previous_secret_until=endpoint.previous_until,
            secret=secret,
        )


class EndpointPage(BaseModel):
    """Newest first. Ask for the next page with ``after=<last_id>``."""

    data: list[EndpointView]
    last_id: str | None = Field(None, description="Absent of an empty page.")
    has_more: bool

    @classmethod
    def of(cls, found: Sequence[Endpoint], limit: int) -> "EndpointPage":
        """``found`` has one more than ``limit`` where there are more."""
        data = [EndpointView.of(endpoint) for endpoint in found[:limit]]
        return cls(data=data, last_id=data[-1].id if data else None, has_more=len(found) > limit)


class WebhookSecret(BaseModel):
    """Verify the ``webhook-signature`` header with it, by any Standard Webhooks library."""

    secret: str


class AttemptView(BaseModel):
    """One request to a receiver."""

    n: int
    at: datetime
    status: int | None = Field(None, description="HTTP status of the answer; absent if there was none.")
    error: str | None = Field(None, description="Why it does not count as delivered; absent if it does.")
    answer: str = Field(description="The first 2 kB of what the receiver answered.")
    took_ms: int


class DeliveryView(BaseModel):
    """An event on its way to a receiver."""

    id: str = Field(description="The `webhook-id` header, the same over all attempts.")
    event: str
    state: DeliveryState = Field(
        description="`pending`: to be sent at `next_attempt_at`. `failed`: given up; `redeliver` sends it again."
    )
    job_id: str | None = Field(None, description="Absent of a test.")
    endpoint_id: str | None = Field(None, description="Absent: to the job's own `webhook_url`, or the operator's.")
    url: str
    created_at: datetime
    next_attempt_at: datetime | None = None
    delivered_at: datetime | None = None
    error: str | None = Field(None, description="What stood in the way at last.")
    attempts: list[AttemptView] = Field(description="The latest 20, the first first.")

    @classmethod
    def of(cls, delivery: Delivery) -> "DeliveryView":
        return cls(
            id=delivery.id,
            event=delivery.event,
            state=_state(delivery),
            job_id=delivery.job_id,
            endpoint_id=delivery.endpoint_id,
            url=delivery.url,
            created_at=delivery.created_at,
            next_attempt_at=delivery.next_attempt_at,
            delivered_at=delivery.delivered_at,
            error=delivery.last_error,
            attempts=[AttemptView.model_validate(attempt, from_attributes=True) for attempt in delivery.log],
        )


def _state(delivery: Delivery) -> DeliveryState:
    if delivery.next_attempt_at is None:
        return "failed" if delivery.delivered_at is None else "delivered"
    return "sending" if delivery.state == "sending" else "pending"


class DeliveryPage(BaseModel):
    """Newest first. Ask for the next page with ``after=<last_id>``."""

    data: list[DeliveryView]
    last_id: str | None = Field(None, description="Absent of an empty page.")
    has_more: bool

    @classmethod
    def of(cls, found: Sequence[Delivery], limit: int) -> "DeliveryPage":
        """``found`` has one more than ``limit`` where there are more."""
        data = [DeliveryView.of(delivery) for delivery in found[:limit]]
        return cls(data=data, last_id=data[-1].id if data else None, has_more=len(found) > limit)
