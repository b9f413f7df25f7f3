"""Slots: which loopback address and which ports a node has. The same on every machine, by arithmetic alone.

Ray binds most of its ports on the wildcard address, so a machine can listen on another node's ``address:port`` only if
its own Ray doesn't use that port number: no two slots share one. The head's well-known services sit inside its own
block as well, so no port is special. All ports are below 32768, where Linux begins to hand out ephemeral ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address

FIRST_PORT = 10240
PORTS_PER_SLOT = 64
#: 352: as many blocks as fit below the ephemeral range.
SLOTS = (32768 - FIRST_PORT) // PORTS_PER_SLOT

_NETWORK = int(IPv4Address("127.77.0.0"))
#: Hosts per /24: no address ends in .0 or .255, which some software takes for a network or a broadcast.
_HOSTS = 254
#: Offsets into a block. 13 to 15 are spare.
_FIRST_WORKER = 16


@dataclass(frozen=True)
class Slot:
    """One node's place. ``number`` is 1 (the head) to 352; ValueError otherwise."""

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= SLOTS:
            raise ValueError(f"slot {self.number} is not in 1..{SLOTS}")

    @cached_property
    def address(self) -> str:
        """IPv4 address in 127.77.0.0/16, e.g. ``127.77.0.2`` for slot 2."""
        subnet, host = divmod(self.number - 1, _HOSTS)
        return str(IPv4Address(_NETWORK + 256 * subnet + host + 1))

    @property
    def node_manager(self) -> int:
        return self._port(0)

    @property
    def object_manager(self) -> int:
        return self._port(1)

    @property
    def dashboard_agent_listen(self) -> int:
        return self._port(2)

    @property
    def dashboard_agent_grpc(self) -> int:
        return self._port(3)

    @property
    def runtime_env_agent(self) -> int:
        return self._port(4)

    @property
    def metrics_export(self) -> int:
        return self._port(5)

    @property
    def workers(self) -> range:
        """One port per worker process or driver: at most 48 of them on a node."""
        return range(self._port(_FIRST_WORKER), self._port(PORTS_PER_SLOT))

    @property
    def forwarded(self) -> tuple[int, ...]:
        """The ports that the head reaches through the mesh; nobody else reaches any.

        Raylet and object manager; the agent's gRPC port, by which the dashboard reads logs; metrics; workers. Not the
        agent's HTTP port, which starts jobs, and not the runtime environments' agent: both serve their own machine.
        """
        own = (self.node_manager, self.object_manager, self.dashboard_agent_grpc, self.metrics_export)
        return (*own, *self.workers)

    def _port(self, offset: int) -> int:
        return FIRST_PORT + (self.number - 1) * PORTS_PER_SLOT + offset


@dataclass(frozen=True)
class HeadSlot(Slot):
    """Slot 1, which also has the cluster's own services."""

    number: int = 1

    def __post_init__(self) -> None:
        if self.number != 1:
            raise ValueError("the head is slot 1")

    @property
    def gcs(self) -> int:
        return self._port(6)

    @property
    def dashboard(self) -> int:
        return self._port(7)

    @property
    def client_server(self) -> int:
        """Ray client: ``ray://127.77.0.1:port``."""
        return self._port(8)

    @property
    def autoscaler_metrics(self) -> int:
        """For the variable ``AUTOSCALER_METRIC_PORT``; not forwarded."""
        return self._port(9)

    @property
    def dashboard_metrics(self) -> int:
        """For the variable ``DASHBOARD_METRIC_PORT``; not forwarded."""
        return self._port(10)

    @property
    def http(self) -> int:
        """Where the API listens if nodes are to reach it through the mesh: media of the local store, for one."""
        return self._port(11)

    @property
    def briefing(self) -> int:
        """Where a node learns what it needs to start Ray; see ``cluster.briefing``. The hub itself answers there."""
        return self._port(12)

    @property
    def forwarded(self) -> tuple[int, ...]:
        """The ports that nodes reach through the mesh: what Ray on them needs of its head, and the API.

        Not the dashboard, the client server and the agents: each of them runs whatever it is told to.
        """
        return (self.node_manager, self.object_manager, self.gcs, self.http, *self.workers)


HEAD = HeadSlot()


def slot(number: int) -> Slot:
    """The slot of that number, the head's with its extra ports. Raises ValueError if there is none."""
    return HEAD if number == 1 else Slot(number)


def slots() -> Iterator[Slot]:
    """All of them, in order."""
    return (slot(number) for number in range(1, SLOTS + 1))
