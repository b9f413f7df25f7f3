"""What Ray Serve runs at the moment, as far as the service needs to know."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import serve
from ray._private.state import available_resources_per_node
from ray.serve.context import _get_global_client
from ray.serve.schema import DeploymentDetails, ServeInstanceDetails

from deployments.classes import Deployment
from serve_app.jobs.conditions import Condition, WaitCode
from serve_app.serving.placement import Node, could_take, why_no_node_fits

#: Seconds for which an answer counts.
FRESH_S = 1.0
#: Seconds a replica may be without a node before that is worth telling.
PLACED_S = 5.0
#: Characters of a reason that anybody may read.
_BRIEF = 300


@dataclass(frozen=True)
class ModelState:
    """One deployment of a model."""

    status: str
    message: str
    running_replicas: int
    max_replicas: int
    #: Tasks one replica takes at a time.
    slots: int
    #: Replicas that are on their way.
    starting_replicas: int = 0
    #: What keeps replicas from starting; None if nothing is known to.
    trouble: Condition | None = None
    #: Whether a node is there that could take a replica, be it full.
    live: bool = True


class ClusterState(Protocol):
    """A look at the cluster."""

    async def models(self) -> Mapping[str, ModelState]:
        """By name of the deployment; those that are not deployed are absent. Raises when Serve does not answer."""


class ServeState:
    """The application this process belongs to, as the Serve controller describes it.

    The controller's description is what ``serve status`` and the dashboard show; the public ``serve.status()`` leaves
    out the limits, which the YAML may override and which nobody should have to write down twice.
    """

    def __init__(self, served: Sequence[Deployment]) -> None:
        """``served``: the deployments that there should be."""
        self._served = {each.name for each in served}
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
        nodes = _nodes()
        for name in self._served & app.deployments.keys():
            deployment = app.deployments[name]
            config = deployment.deployment_config
            needs, labels = deployment.required_resources, _labels(config.ray_actor_options)
            scaling = config.autoscaling_config
            limit = scaling["max_replicas"] if isinstance(scaling, dict) else getattr(scaling, "max_replicas", None)
            running = sum(replica.state.value == "RUNNING" for replica in deployment.replicas)
            states[name] = ModelState(
                status=deployment.status.value,
                message=deployment.message,
                running_replicas=running,
                max_replicas=int(limit or config.num_replicas or 1),
                slots=int(config.max_ongoing_requests),
                starting_replicas=sum(replica.state.value == "STARTING" for replica in deployment.replicas),
                trouble=_trouble(name, deployment, labels, nodes),
                live=running > 0 or any(could_take(needs, labels, node) for node in nodes),
            )
        return states


def _labels(options: Any) -> Mapping[str, str]:
    return (options.get("label_selector") if isinstance(options, dict) else options.label_selector) or {}


def _trouble(
    name: str, deployment: DeploymentDetails, labels: Mapping[str, str], nodes: Sequence[Node]
) -> Condition | None:
    if reason := reason_of(deployment.message):
        return Condition(WaitCode.MODEL_UNAVAILABLE, f"{name} cannot start: {reason}")
    homeless = [
        replica
        for replica in deployment.replicas
        if replica.state.value == "STARTING"
        and replica.node_id is None
        and time.time() - replica.start_time_s > PLACED_S
    ]
    if not homeless:
        return None
    why = why_no_node_fits(deployment.required_resources, labels, nodes)
    return Condition(WaitCode.NO_NODE_FITS, f"No node takes a replica of {name}: {why}.") if why else None


def reason_of(message: str) -> str | None:
    """Why a replica's constructor failed, of what Serve says about a deployment: the exception without its traceback.

    It is shown to anybody, so it is one line, without colours, and brief.
    """
    said, marker, trace = message.partition("Error:\n")
    if not marker or "failed to start" not in said:
        return None
    lines = re.sub(r"\x1b\[[0-9;]*m", "", trace).rstrip().splitlines()
    # After the innermost frame, whose source is indented, comes the exception; its text may have several lines.
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    begins = frames[-1] + 1 if frames else len(lines)
    while begins < len(lines) and lines[begins].startswith("    "):
        begins += 1
    text = " ".join(part for line in lines[begins:] or lines[-1:] for part in line.split())
    return text[: _BRIEF - 1] + "…" if len(text) > _BRIEF else text or "no reason was given"


def _nodes() -> Sequence[Node]:
    free = available_resources_per_node()
    return [
        Node(total=node["Resources"], free=free.get(node["NodeID"], {}), labels=node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
