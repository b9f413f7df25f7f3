"""Which deployment is to make what is asked for, or why none can."""

from deployments.registry import MODELS
from serve_app.api.errors import RecipeUnavailable, RequestTooLarge
from serve_app.jobs.assignment import TooLarge
from serve_app.jobs.job import NewJob
from serve_app.jobs.refusal import refusal
from serve_app.services import Services


async def placed(new: NewJob, services: Services) -> NewJob:
    """With its deployment. Raises RequestTooLarge and RecipeUnavailable."""
    try:
        return await services.abilities.assigned(new)
    except TooLarge as error:
        spec = MODELS[new.model]
        kind, field = (
            (RecipeUnavailable, spec.variant_field) if error.unavailable else (RequestTooLarge, spec.size_field)
        )
        detail = refusal(new.model, new.params, error)
        raise kind(f"{field}: {detail}" if field else detail, param=field or None) from None
