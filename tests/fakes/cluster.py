"""A cluster whose state a test sets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.registry import MODELS
from serve_app.serving.state import ModelState


def healthy(name: str = "") -> ModelState:
    """A deployed model without replicas: it scales from zero."""
    del name
    return ModelState(status="HEALTHY", message="", running_replicas=0, max_replicas=1, slots=3)


@dataclass
class FakeCluster:
    """``states`` is what Serve says; set ``error`` and it says nothing any more."""

    states: dict[str, ModelState] = field(default_factory=lambda: {name: healthy(name) for name in MODELS})
    error: Exception | None = None

    async def models(self) -> Mapping[str, ModelState]:
        if self.error is not None:
            raise self.error
        return self.states
