"""A whole mesh in one event loop, without root: hub and agents share a network namespace.

Programs listen on their slot's real address. Where an end listens for *other* slots is an address of its own:
``127.78.<own slot>.<slot>``, so ``mesh.via(2, 1)`` is how a program on node 2 reaches the head.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.mesh.agent import Agent, AgentTiming, join
from cluster.mesh.dialer import HubAddress
from cluster.mesh.hub import Hub, HubLimits
from cluster.mesh.identity import Credentials, HubIdentity
from cluster.mesh.plan import Slot, slot
from cluster.mesh.registry import NodeRegistry, invite
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry
from tests.ports import block

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

IDENTITY = HubIdentity.derived(b"loopback mesh of the tests......")
TIMING = AgentTiming(ping_s=0.2, silence_s=5, backoff_s=0.2)
#: First worker port: free for whatever a test serves.
OFFSET = 16


@dataclass
class Node:
    """A running agent."""

    agent: Agent
    running: asyncio.Task[None]
    credentials: Credentials
    #: True and False as the hub is reached and lost.
    link: asyncio.Queue[bool]


@dataclass
class LoopbackMesh:
    """Hub (slot 1) and however many nodes."""

    state: Path
    hub: Hub
    limits: HubLimits
    fixed_answers: Mapping[int, bytes]
    registry: NodeRegistry
    nodes: dict[int, Node] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def via(self, at: int, to: int) -> tuple[str, int]:
        """Where a program on slot ``at`` connects to reach slot ``to``."""
        return f"127.78.{at}.{to}", block(slot(to))[OFFSET]

    async def serve(self, at: int, handle: Serve) -> None:
        """Run a program on that slot until the mesh ends."""
        server = await asyncio.start_server(handle, slot(at).address, block(slot(at))[OFFSET])
        self._stack.callback(server.close)

    async def enrol(self) -> Credentials:
        """Invite and join one node, but don't start it."""
        _, invitation = await invite(self.registry, IDENTITY, "node", 60)
        file = self.state / f"{len(list(self.state.iterdir()))}.json"
        return await join(self.address, invitation.token(), "node", file)

    async def start(self, credentials: Credentials) -> Node:
        """Start an agent and wait until its listeners are open."""
        node = self.nodes[credentials.slot] = await self._run(credentials, credentials.slot)
        return node

    async def start_beside(self, credentials: Credentials) -> Node:
        """Start another agent with the same key, that listens on 127.78.9.x."""
        node = self.nodes[-credentials.slot] = await self._run(credentials, 9)
        return node

    async def _run(self, credentials: Credentials, at: int) -> Node:
        link: asyncio.Queue[bool] = asyncio.Queue()
        agent = Agent(self.address, credentials, TIMING, link.put_nowait, listener_of(at))
        node = Node(agent, asyncio.create_task(agent.run()), credentials, link)
        ready = asyncio.create_task(agent.ready.wait())
        await asyncio.wait({ready, node.running}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return node

    async def revoke(self, number: int) -> None:
        """Drop a node, now: a hub finds out by itself when it next reads its registry."""
        await self.registry.revoke(number)
        await self.hub.sync()

    def nobody_waits(self) -> bool:
        """At the hub's port, to be let in."""
        acceptor = self.hub._acceptor
        return not (acceptor._silent or acceptor._pending)

    async def restart_hub(self) -> None:
        """A new hub process on the same port with the same registry."""
        await self.hub.close()
        self.hub = make_hub(self.registry, self.hub.port, self.limits, self.fixed_answers)
        await self.hub.start()

    @property
    def address(self) -> HubAddress:
        return HubAddress("127.0.0.1", self.hub.port)


@asynccontextmanager
async def loopback_mesh(
    state: Path,
    nodes: int = 2,
    limits: HubLimits | None = None,
    fixed_answers: Mapping[int, bytes] | None = None,
    registry: NodeRegistry | None = None,
    patience_s: float = 90,
) -> AsyncIterator[LoopbackMesh]:
    """A hub with slots 2, 3, … connected."""
    limits, fixed = limits or HubLimits(sync_s=0.2, report_s=0.2), fixed_answers or {}
    registry = registry or MemoryRegistry()
    mesh = LoopbackMesh(state, make_hub(registry, 0, limits, fixed), limits, fixed, registry)
    await mesh.hub.start()
    try:
        async with asyncio.timeout(patience_s):
            for credentials in [await mesh.enrol() for _ in range(nodes)]:
                await mesh.start(credentials)
            # A test that hangs says where.
            yield mesh
    finally:
        for node in mesh.nodes.values():
            node.running.cancel()
        await asyncio.gather(*(node.running for node in mesh.nodes.values()), return_exceptions=True)
        await mesh.hub.close()
        await mesh._stack.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of, counters above all."""
    while not condition():  # noqa: ASYNC110 - there is none
        await asyncio.sleep(0.01)


def make_hub(registry: NodeRegistry, port: int, limits: HubLimits, fixed_answers: Mapping[int, bytes]) -> Hub:
    return Hub(
        IDENTITY,
        registry,
        host="127.0.0.1",
        port=port,
        limits=limits,
        fixed_answers=fixed_answers,
        listen_on=listener_of(1),
    )


def listener_of(number: int) -> Callable[[Slot], str]:
    return lambda other: f"127.78.{number}.{other.number}"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, then end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, as gRPC servers do."""
    writer.write(b"hello from the server")
    writer.close()
    await reader.read()
    writer.close()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the SHA-256 of everything, once the client has ended its half."""
    running = hashlib.sha256()
    while data := await reader.read(1 << 20):
        running.update(data)
    writer.write(running.digest())
    writer.close()


async def exchange(address: tuple[str, int], data: bytes) -> bytes:
    """Connect, send, end our half, and read until the other ends its own."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
