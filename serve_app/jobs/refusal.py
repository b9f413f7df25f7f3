"""What is said of a video that no GPU here can make."""

from collections.abc import Mapping
from typing import Any

from deployments.registry import MODELS
from serve_app.jobs.assignment import TooLarge


def refusal(model: str, params: Mapping[str, Any], error: TooLarge) -> str:
    """Why, and what could be made instead. ``params`` are valid ones of the model."""
    spec = MODELS[model]
    asked = f" with {spec.variant_field} {error.variant}" if error.variant else ""
    others = [name for name, size in sorted(error.most.items()) if name and size >= error.size]
    instead = f" With {spec.variant_field} {' or '.join(others)} it can be made." if others else ""
    if error.unavailable:
        return f"No GPU here makes videos{asked}.{instead}"
    fits = spec.fitting(spec.params.model_validate(params), error.most[error.variant])
    return f"No GPU here has the memory for this video{asked}; {fits}.{instead}"
