"""What a hub or an agent has done since it started."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cluster.mesh.flow import Endpoint

#: Name and label of a counter.
Total = tuple[str, str]


@dataclass(frozen=True)
class NodeTraffic:
    """A node as its hub sees it. Bytes from and to the node over the network since the hub started."""

    slot: int
    name: str
    connected: bool
    flows: int
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Stats:
    """A moment's counters. Bytes from and to the network, framing included, TLS not."""

    flows_open: int
    flows_total: int
    bytes_in: int
    bytes_out: int
    #: Control connections after a node's first.
    reconnects: int
    #: Flows that were cut because the path had died.
    dead: int
    #: By reason; see the constants in this module.
    refused: Mapping[str, int]
    #: Ports that could not be listened on.
    ports_missing: int = 0
    #: A hub's nodes; empty for an agent.
    nodes: tuple[NodeTraffic, ...] = field(default=())

    def totals(self) -> Counter[Total]:
        """What only ever grows, as ``/metrics`` names it."""
        plain = {
            ("video_mesh_flows", ""): self.flows_total,
            ("video_mesh_bytes", "in"): self.bytes_in,
            ("video_mesh_bytes", "out"): self.bytes_out,
            ("video_mesh_reconnects", ""): self.reconnects,
            ("video_mesh_dead_flows", ""): self.dead,
        }
        return Counter(plain | {("video_mesh_refused", reason): count for reason, count in self.refused.items()})


#: Too slow with TLS or the first frame; cut to make room for others; went away before saying anything.
SLOW, CROWDED, LEFT = "slow", "crowded", "left"
#: Not TLS 1.3; TLS, but not this protocol.
NOT_TLS, MALFORMED = "not_tls", "malformed"
#: Address or port outside the plan, or of no node; a node has too many flows, or says too much; an answer to no
#: question.
OUTSIDE_PLAN, TOO_MANY, UNKNOWN_FLOW = "outside_plan", "too_many", "unknown_flow"
#: The other node is away, or nothing answers on its port.
PEER_DOWN, NOBODY_THERE = "peer_down", "nobody_there"
#: An agent's: the hub's certificate is another.
WRONG_FINGERPRINT = "wrong_fingerprint"


class Counters:
    """Counts. One writer: the event loop."""

    def __init__(self) -> None:
        self.flows_total = 0
        self.reconnects = 0
        self.dead = 0
        self.refused: Counter[str] = Counter()
        #: Of flows that have ended.
        self.bytes_in = self.bytes_out = 0

    def end(self, connection: Endpoint) -> None:
        """A data connection is gone."""
        self.bytes_in += connection.received
        self.bytes_out += connection.sent

    def stats(
        self, connections: Iterable[Endpoint], nodes: tuple[NodeTraffic, ...] = (), ports_missing: int = 0
    ) -> Stats:
        """A snapshot; ``connections`` are the open data connections."""
        open_now = tuple(connections)
        return Stats(
            flows_open=len(open_now),
            flows_total=self.flows_total,
            bytes_in=self.bytes_in + sum(connection.received for connection in open_now),
            bytes_out=self.bytes_out + sum(connection.sent for connection in open_now),
            reconnects=self.reconnects,
            dead=self.dead,
            refused=MappingProxyType(dict(self.refused)),
            ports_missing=ports_missing,
            nodes=nodes,
        )
