"""Ray's cluster YAML: which types of nodes there may be, and how Ray is told who provides them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.autoscaler.exchange import MOST_TYPE_BYTES

#: What the head is called to the autoscaler.
HEAD_ID = HEAD_TYPE = "head"
#: The type of nodes that joined by hand: nothing is ever started for it, and none of it is ever ended for being idle.
BY_HAND = "by_hand"
#: As many as the mesh has slots for.
_MOST_BY_HAND = 350
_NEVER_S = 1e9
#: Seconds after which Ray takes a node back whose work went away before it came.
_UNWANTED_S = 60
#: For which Ray waits for a node that it asked for: how long a start may take, and when it begins, is the fleet's. But
#: a machine that says that it is a node, and never comes to Ray, is not to be paid for ever.
_PATIENCE_S = 86400
_PROVIDER = "cluster.autoscaler.provider.FleetNodeProvider"
#: Of no use to nodes that join by themselves; without them Ray's monitor ends, and with it the head.
_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)


class BadClusterConfig(ValueError):
    """The YAML can't be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class NodeTypeConfig:
    """One of ``available_node_types``, but for the head's."""

    #: Nodes of it at most.
    most: int
    #: What deployments select by.
    labels: Mapping[str, str]
    #: ``node_config``: for whoever provides it.
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ClusterConfig:
    """The YAML as it stands."""

    path: Path
    content: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "ClusterConfig":
        """Raises :class:`BadClusterConfig`."""
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise BadClusterConfig(f"{path}: {error}") from None
        if not isinstance(content, dict):
            raise BadClusterConfig(f"{path}: no mapping")
        return cls(path, content)

    @property
    def provided(self) -> bool:
        """It names a provider of its own."""
        return bool(self.content.get("provider"))

    @property
    def node_types(self) -> Mapping[str, NodeTypeConfig]:
        """By name. Raises :class:`BadClusterConfig`."""
        found = {}
        try:
            for name, each in self.content["available_node_types"].items():
                if name == self.content["head_node_type"]:
                    continue
                if not 0 < len(name.encode()) <= MOST_TYPE_BYTES:
                    raise ValueError(f"a name has 1 to {MOST_TYPE_BYTES} bytes: {name}")
                found[name] = NodeTypeConfig(
                    most=int(each["max_workers"]),
                    labels=dict(each.get("labels", {})),
                    options=dict(each["node_config"]),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadClusterConfig(f"{self.path}: available_node_types: {error!r}") from None
        return found

    def of_fleet(self, socket: Path) -> str:
        """The same with our provider, which asks at that socket."""
        by_hand = {
            "resources": {},
            "node_config": {},
            "min_workers": 0,
            "max_workers": _MOST_BY_HAND,
            "idle_timeout_s": _NEVER_S,
        }
        provider = {
            "type": "external",
            "module": _PROVIDER,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "socket": str(socket),
        }
        return yaml.safe_dump(
            {
                **{name: [] for name in _COMMANDS},
                "file_mounts": {},
                **self.content,
                "provider": provider,
                "max_workers": int(self.content.get("max_workers", 2)) + _MOST_BY_HAND,
                "available_node_types": {**self.content["available_node_types"], BY_HAND: by_hand},
            }
        )


@dataclass(frozen=True)
class Autoscaling:
    """How Ray is told of a provider of nodes; empty without one."""

    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def by(cls, path: Path) -> "Autoscaling":
        """By a YAML with a provider."""
        return cls(
            (f"--autoscaling-config={path.absolute()}",),
            {
                # Version 2, which alone looks at label selectors. Without names for itself it never starts a node.
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_NODE_TYPE_NAME": HEAD_TYPE,
                "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S": str(_UNWANTED_S),
                "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(_PATIENCE_S),
            },
        )
