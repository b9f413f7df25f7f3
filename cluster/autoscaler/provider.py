"""What Ray's autoscaler loads as its provider of nodes: it passes on what is wanted, and shows what there is.

Ray calls it from its loop and its threads; a constructor that raises would end the whole head. So nothing here fails
without the launcher, and only the constructor waits for it.
"""

import threading
import uuid
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.autoscaler.configuration import HEAD_ID, HEAD_TYPE
from cluster.autoscaler.link import WishLink

#: Seconds for the first answer, once. Nodes that a restarted head has adopted have to be there from the beginning: one
#: that is in Ray and not in Ray's first list of its provider is taken for ended, and then never ended for being idle.
_FIRST_S = 60.0

Tags = dict[str, str]


class FleetNodeProvider(NodeProvider):  # type: ignore[misc]  # Ray is untyped
    """``provider_config`` names the ``socket``."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._link = WishLink(Path(str(provider_config.get("socket", ""))))
        self._link.settle(_FIRST_S)
        #: What Ray has said of those that it asked for: it knows its request again by one of them.
        self._tags: dict[str, Tags] = {}
        #: Ray lists in its loop while others of its threads create: a node is never there without its tags, nor they
        #: without it.
        self._creating = threading.Lock()

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        with self._creating:
            nodes = self._link.nodes
            self._tags = {name: tags for name, tags in self._tags.items() if name in nodes}
        return [
            name
            for name in (HEAD_ID, *nodes)
            if all(self.node_tags(name).get(tag) == value for tag, value in tag_filters.items())
        ]

    def node_tags(self, node_id: str) -> Tags:
        if node_id == HEAD_ID:
            return _tags(NODE_KIND_HEAD, HEAD_TYPE)
        node_type = self._link.nodes.get(node_id)
        if node_type is None:
            return {}
        return {**self._tags.get(node_id, {}), **_tags(NODE_KIND_WORKER, node_type)}

    def is_running(self, node_id: str) -> bool:
        return node_id == HEAD_ID or node_id in self._link.nodes

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        with self._creating:
            if node_id in self._tags:
                self._tags[node_id] = {**self._tags[node_id], **tags}

    def internal_ip(self, node_id: str) -> str:
        """Nodes join by themselves, and Ray knows them by their id."""
        return node_id

    def external_ip(self, node_id: str) -> str:
        return node_id

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: Tags, count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> dict[str, Any]:
        """They are in the list at once, and nodes when the fleet has rented them."""
        created = [uuid.uuid4().hex for _ in range(count)]
        with self._creating:
            for name in created:
                self._tags[name] = dict(tags)
                self._link.add(name, tags[TAG_RAY_USER_NODE_TYPE])
        return {name: {} for name in created}

    def terminate_node(self, node_id: str) -> None:
        """One that joined by hand stays: the fleet passes over it, and the next answer shows it again."""
        self._link.dismiss(node_id)


def _tags(kind: str, node_type: str) -> Tags:
    return {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
