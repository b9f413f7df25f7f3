"""The fleet of ``video-api head``: what is rented for which model, from whom, within which caps. ``VAST_API_KEY`` alone
turns it on."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import structlog
from pydantic import DirectoryPath, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from cluster.autoscaler.configuration import BadClusterConfig, ClusterConfig, NodeTypeConfig
from cluster.bootstrap.seed import command
from cluster.fleet.caps import Caps
from cluster.head.attendance import Run
from cluster.head.renting import Outlook, RentingOptions
from cluster.mesh.dialer import HubAddress
from cluster.vast.client import VastClient
from cluster.vast.exchange import BASE_URL
from cluster.vast.node_type import NODE_TYPES
from cluster.vast.provider import Kind, VastProvider
from deployments.classes import model_of
from deployments.registry import MODELS
from serve_app.cli.node_access import hub_address
from serve_app.cli.outlook import condition_of
from serve_app.cli.supply import Supply
from serve_app.cli.terminal import UsageProblem
from serve_app.cli.work import USES
from serve_app.jobs import outlooks
from serve_app.jobs.outlooks import Outlooks
from serve_app.jobs.tables import runs
from serve_app.serving.placement import fits

if TYPE_CHECKING:
    from serve_app.settings import Settings

log = structlog.get_logger()

#: PyTorch's own image, which hosts have cached for others: Python 3.12, torch as in ``pyproject.toml``, CUDA 12.6.
IMAGE = (
    "pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime"
    "@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4"
)
#: Its Python's major and minor number. A node needs its head's: code passes between them pickled.
IMAGE_PYTHON = "3.12"
#: The same of this process.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Jobs that a node is expected to do: its whole cost is weighed by them.
_JOBS = 20
#: Runs that are read at a time, and how long one may take at most: far more than honest ones are and take.
_MOST_RUNS, _LONGEST = 1000, timedelta(days=7)


class RentingSettings(BaseSettings):
    """Of the environment, beside the service's. Dollars."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    vast_api_key: SecretStr = SecretStr("")
    vast_url: str = BASE_URL
    vast_image: str = IMAGE
    #: All nodes together, storage included.
    fleet_usd_per_hour: float = Field(3.0, gt=0, allow_inf_nan=False)
    #: From midnight to midnight, UTC.
    fleet_usd_per_day: float = Field(20.0, gt=0, allow_inf_nan=False)
    #: One node.
    fleet_usd_per_node_hour: float = Field(1.5, gt=0, allow_inf_nan=False)
    #: Credit below which somebody is told.
    fleet_low_credit_usd: float = Field(5.0, ge=0, allow_inf_nan=False)
    #: How nodes reach the head. Unset: Railway's TCP proxy.
    fleet_hub: str = ""
    #: Folder of wheels: nodes install from these alone. Unset: from PyPI, what the image lacks.
    fleet_wheelhouse: DirectoryPath | None = None

    @field_validator("vast_image")
    @classmethod
    def _pinned(cls, value: str) -> str:
        if "@sha256:" not in value:
            raise ValueError(
                "name it with its digest (NAME@sha256:…): what a tag means can change between two machines"
            )
        return value

    @classmethod
    def load(cls) -> "RentingSettings":
        """Raises UsageProblem."""
        try:
            return cls()
        except ValidationError as error:
            faults = (f"{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
            raise UsageProblem("; ".join(faults)) from None


def renting(settings: "Settings", wanted: Mapping[str, Any], cluster: ClusterConfig | None) -> RentingOptions | None:
    """What the head rents by; None without a key. ``wanted`` is the Serve YAML. Raises UsageProblem."""
    found = RentingSettings.load()
    if not found.vast_api_key.get_secret_value():
        return None
    if cluster is None:
        raise UsageProblem("VAST_API_KEY is set: name the types of nodes by --cluster configs/cluster.yaml")
    if cluster.provided:
        raise UsageProblem(f"{cluster.path} names a provider, and VAST_API_KEY is set: which of them shall it be?")
    hub = found.fleet_hub or hub_address()
    try:
        HubAddress.parse(hub)
    except ValueError as error:
        raise UsageProblem(f"FLEET_HUB, at which nodes reach MESH_PORT: {error}") from None
    try:
        client = VastClient(found.vast_api_key.get_secret_value(), found.vast_url)
    except ValueError as error:
        raise UsageProblem(f"VAST_API_KEY or VAST_URL: {error}") from None
    kinds = kinds_of(cluster, found)
    if fault := python_fault(found.vast_image):
        log.error("fleet.other_python", reason=fault)
    node_types = cluster.node_types
    served = deployments_of(wanted, node_types)
    return RentingOptions(
        provider=VastProvider(client, kinds),
        service=Service(settings, served),
        caps=Caps(
            usd_per_hour=found.fleet_usd_per_hour,
            usd_per_day=found.fleet_usd_per_day,
            usd_per_instance_hour=found.fleet_usd_per_node_hour,
            nodes={name: node_types[name].most for name in served},
        ),
        cluster=cluster,
        prefix=settings.fleet_prefix,
        hub=hub,
        low_credit_usd=found.fleet_low_credit_usd,
        wheelhouse=found.fleet_wheelhouse,
    )


def kinds_of(cluster: ClusterConfig, found: RentingSettings) -> Mapping[str, Kind]:
    """What is rented for each of the YAML's node types. Raises UsageProblem."""
    try:
        return {name: _kind(name, each, found) for name, each in cluster.node_types.items()}
    except BadClusterConfig as error:
        raise UsageProblem(str(error)) from None
    except ValueError as error:
        raise UsageProblem(f"{cluster.path}: {error}") from None


def _kind(name: str, config: NodeTypeConfig, found: RentingSettings) -> Kind:
    """Raises ValueError."""
    if name not in NODE_TYPES:
        raise ValueError(f"node type {name}: there are {', '.join(NODE_TYPES)}")
    try:
        node = NODE_TYPES[name].with_options(config.options)
    except ValueError as error:
        raise ValueError(f"node type {name}: {error}") from None
    return Kind(
        node=node,
        work=USES[name].work(_JOBS),
        image=found.vast_image,
        args=command(),
        # The container's own key is good for its own end and nothing else.
        env={"END_URL": f"{found.vast_url.rstrip('/')}/api/v0/instances/$CONTAINER_ID/"},
    )


def python_fault(image: str) -> str | None:
    """Why nodes on the image can't be of this head; None: they can, as far as anybody here knows."""
    if image != IMAGE or PYTHON == IMAGE_PYTHON:
        return None
    return (
        f"this head runs on Python {PYTHON} and the image that nodes start from has {IMAGE_PYTHON}: start the head on"
        f" {IMAGE_PYTHON}, as its own image does, or name an image with {PYTHON} as VAST_IMAGE"
    )


def deployments_of(wanted: Mapping[str, Any], node_types: Mapping[str, NodeTypeConfig]) -> Mapping[str, Sequence[str]]:
    """By node type those that run on it, as the deployments of a Serve YAML select. Raises UsageProblem."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for application in wanted["applications"]:
        for deployment in application.get("deployments", []):
            if model_of(deployment["name"]) not in MODELS:
                continue
            selector = deployment.get("ray_actor_options", {}).get("label_selector", {})
            fitting = [name for name, each in node_types.items() if selector and fits(selector, each.labels)]
            if fitting:
                found[fitting[0]].append(deployment["name"])
            elif deployment["name"] in MODELS:
                # Of another class than its model's largest it is for nodes that join by hand.
                raise UsageProblem(f"{deployment['name']}: no node type has the labels that its label_selector names")
    return dict(found)


class Service:
    """The service, as the fleet asks it (``cluster.head.renting.ServiceSide``)."""

    def __init__(self, settings: "Settings", served: Mapping[str, Sequence[str]]) -> None:
        """``served``: by node type the deployments that run on it."""
        self._settings, self._served = settings, served
        models = {name: sorted({model_of(each) for each in here}) for name, here in served.items()}
        self._supply = Supply(settings, models, os.environ)

    async def check_weights(self, node_type: str) -> None:
        await self._supply.check(node_type)

    async def weights(self, node_type: str) -> Mapping[str, str]:
        return await self._supply.variables(node_type)

    async def runs(self, engine: AsyncEngine, nodes: Collection[str], since: datetime) -> Sequence[Run]:
        # The service's role writes them, whatever it likes: as many, and from the beginning of time to its end.
        query = (
            select(runs.c.node, runs.c.started_at, runs.c.ended_at)
            .where(
                runs.c.node.in_(nodes),
                runs.c.started_at.between(since - _LONGEST, func.now()),
                or_(runs.c.ended_at.is_(None), runs.c.ended_at.between(since, func.now())),
            )
            .order_by(runs.c.started_at.desc())
            .limit(_MOST_RUNS)
        )
        async with engine.connect() as db:
            return [Run(node=node, begun_at=begun, ended_at=ended) for node, begun, ended in await db.execute(query)]

    async def publish(self, engine: AsyncEngine, found: Mapping[str, Outlook]) -> None:
        told = Outlooks(engine)
        for node_type, outlook in found.items():
            for deployment in self._served[node_type]:
                await told.note(deployment, _told(node_type, outlook))

    async def alert(self, name: str, facts: Mapping[str, Any]) -> None:
        """To API_WEBHOOK_URL, signed as all webhooks are. It is in the log already, and that is all without one."""
        if not (url := self._settings.api_webhook_url):
            return
        now = datetime.now(UTC)
        body = json.dumps({"type": f"fleet.{name}", "timestamp": now.isoformat(), "data": dict(facts)})
        message = f"fleet_{name}_{int(now.timestamp())}"
        headers = {
            "content-type": "application/json",
            "webhook-id": message,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self._settings.signing_secret).sign(message, now, body),
        }
        try:
            async with httpx.AsyncClient(timeout=15, trust_env=False) as client:
                (await client.post(url, content=body, headers=headers)).raise_for_status()
        except httpx.HTTPError as error:
            log.warning("fleet.alert_not_taken", alert=name, reason=type(error).__name__)


def _told(node_type: str, outlook: Outlook) -> outlooks.Outlook:
    condition = None if outlook.wait is None else condition_of(outlook.wait)
    low, high = outlook.usd_per_hour or (None, None)
    start_s = outlook.start_s or _expected_s(node_type)
    return outlooks.Outlook(
        start_s=start_s,
        usd_per_hour_low=low,
        usd_per_hour_high=high,
        start_usd=None if high is None else high * start_s / 3600 + outlook.traffic_usd,
        credit_usd=outlook.credit_usd,
        code=None if condition is None else condition.code,
        message=None if condition is None else condition.message,
    )


def _expected_s(node_type: str) -> float:
    """By the slowest line that is taken."""
    work = USES[node_type].work(_JOBS)
    return work.setup_s + 8 * work.start_bytes / (NODE_TYPES[node_type].inet_down_mbps * 1e6)
