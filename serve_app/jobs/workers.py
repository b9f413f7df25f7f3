"""The GPU side as the dispatcher sees it."""

from collections.abc import Mapping
from typing import Protocol

from deployments.contract import Task
from serve_app.jobs.readiness import ModelHealth


class WorkerDied(Exception):
    """The replica that had the task is gone for certain."""


class WorkerUnreachable(Exception):
    """The call broke; a replica may be working on the task all the same."""


class Workers(Protocol):
    """What takes tasks: one window for each model."""

    async def windows(self) -> Mapping[str, int]:
        """Tasks that may be in flight, by model: enough to keep every replica busy and to make more start."""

    async def health(self) -> Mapping[str, ModelHealth]:
        """Which models work, and what keeps the others from it."""

    async def generate(self, task: Task) -> None:
        """Hand a task over; returns when a replica is done with it. Cancelling lets go of it.

        Raises:
            WorkerDied, WorkerUnreachable
        """
