"""What Ray Serve runs at the moment, as far as the service needs to know."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeInstanceDetails

from deployments.registry import MODELS

#: Seconds for which an answer counts.
FRESH_S = 1.0


@dataclass(frozen=True)
class ModelState:
    """One model's deployment."""

    status: str
    message: str
    running_replicas: int
    max_replicas: int
    #: Tasks one replica takes at a time.
    slots: int


class ClusterState(Protocol):
    """A look at the cluster."""

    async def models(self) -> Mapping[str, ModelState]:
        """By model name; those that are not deployed are absent. Raises when Serve does not answer."""


class ServeState:
    """The application this process belongs to, as the Serve controller describes it.

    The controller's description is what ``serve status`` and the dashboard show; the public ``serve.status()`` leaves
    out the limits, which the YAML may override and which nobody should have to write down twice.
    """

    def __init__(self) -> None:
        self._app = serve.get_replica_context().app_name
        # One call at a time: should the controller hang, no more than one thread waits for it.
        self._asking = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="serve-state")
        self._known: Mapping[str, ModelState] = {}
        self._known_until = 0.0

    async def models(self) -> Mapping[str, ModelState]:
        async with self._asking:
            if time.monotonic() > self._known_until:
                self._known = await asyncio.get_running_loop().run_in_executor(self._thread, self._models)
                self._known_until = time.monotonic() + FRESH_S
            return self._known

    def _models(self) -> Mapping[str, ModelState]:
        client = _get_global_client()
        app = ServeInstanceDetails(**client.get_serve_details()).applications[self._app]
        states = {}
        for name in MODELS.keys() & app.deployments.keys():
            deployment = app.deployments[name]
            config = deployment.deployment_config
            scaling = config.autoscaling_config
            limit = scaling["max_replicas"] if isinstance(scaling, dict) else getattr(scaling, "max_replicas", None)
            states[name] = ModelState(
                status=deployment.status.value,
                message=deployment.message,
                running_replicas=sum(replica.state.value == "RUNNING" for replica in deployment.replicas),
                max_replicas=int(limit or config.num_replicas or 1),
                slots=int(config.max_ongoing_requests),
            )
        return states
