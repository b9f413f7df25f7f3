"""Which deployment is to make what is asked for, or why none can."""

from deployments.registry import MODELS
from serve_app.api.errors import RequestTooLarge
from serve_app.jobs.assignment import TooLarge
from serve_app.jobs.job import NewJob
from serve_app.services import Services


async def placed(new: NewJob, services: Services) -> NewJob:
    """With its deployment. Raises RequestTooLarge."""
    try:
        return await services.abilities.assigned(new)
    except TooLarge as error:
        raise _refusal(new.model, error) from None


def _refusal(model: str, error: TooLarge) -> RequestTooLarge:
    spec = MODELS[model]
    variant = f" with {spec.variant_field} {error.variant}" if error.variant else ""
    most = error.most[error.variant]
    larger = [name for name, size in sorted(error.most.items()) if name and size >= error.size]
    instead = f" {spec.variant_field} {' or '.join(larger)} would fit." if larger else ""
    if not most:
        detail = f"{spec.variant_field}: no GPU here makes videos{variant}.{instead}"
        return RequestTooLarge(detail, param=spec.variant_field or None)
    detail = (
        f"{spec.size_field}: {error.size:,} ({spec.size_unit}){variant} is more than any GPU here has memory for; the "
        f"largest is {most:,}.{instead}"
    )
    return RequestTooLarge(detail, param=spec.size_field or None)
