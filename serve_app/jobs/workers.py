"""The GPU side as the dispatcher sees it."""

from collections.abc import Mapping
from typing import Protocol

from deployments.contract import Task
from serve_app.jobs.fleet_size import Capacity
from serve_app.jobs.readiness import ModelHealth


class WorkerDied(Exception):
    """The replica that had the task is gone for certain."""


class WorkerUnreachable(Exception):
    """The call broke; a replica may be working on the task all the same."""


class Workers(Protocol):
    """What takes tasks."""

    async def capacities(self) -> Mapping[str, Capacity]:
        """By deployment: how many tasks it can take, and for how many more replicas would start."""

    async def health(self) -> Mapping[str, ModelHealth]:
        """Which deployments work, and what keeps the others from it."""

    async def generate(self, task: Task) -> None:
        """Hand a task over; returns when a replica is done with it. Cancelling lets go of it.

        Raises:
            WorkerDied, WorkerUnreachable
        """
