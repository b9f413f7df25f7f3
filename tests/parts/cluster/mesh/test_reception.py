"""Those who hold an invitation and have not joined: they fetch, they say how far they are, and no more than that."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from cluster.bootstrap.head import Head, HeadRefuses
from cluster.mesh.agent import Agent, NodeRefused, join
from cluster.mesh.control import PendingConnection
from cluster.mesh.depot import CHUNK_BYTES
from cluster.mesh.dialer import Dialer, HubAddress
from cluster.mesh.hub import Hub, HubLimits
from cluster.mesh.identity import digest
from cluster.mesh.invitation import Invitation
from cluster.mesh.reception import ReceptionLimits
from cluster.mesh.registry import Node, invite
from cluster.mesh.wire import Content, Fetch, Reason, Refused, encode
from tests.parts.cluster.mesh.loopback import IDENTITY, TIMING, listener_of, until
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]

#: Several chunks and a bit.
CONTENT = os.urandom(3 * CHUNK_BYTES + 1000)


class Asked(MemoryRegistry):
    """Counts who is looked for; hangs in it if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0
        self.hangs = False

    async def find(self, token_hash: bytes) -> Node | None:
        self.found += 1
        if self.hangs:
            await asyncio.Event().wait()
        return await super().find(token_hash)


class Shelf:
    """A depot: ``file`` and ``made``, one that hangs and one that fails."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "content"
        self._file.write_bytes(CONTENT)
        self.large = folder / "large"
        with self.large.open("wb") as large:
            # More than sockets buffer.
            large.truncate(64 << 20)

    async def open(self, node: Node, name: str) -> Path | bytes | None:
        match name:
            case "file":
                return self._file
            case "large":
                return self.large
            case "made":
                return f"for {node.name}".encode()
            case "hanging":
                await asyncio.Event().wait()
            case "failing":
                raise RuntimeError("a signed link: secret")
        return None


class Reception:
    """A hub with such a depot."""

    def __init__(self, folder: Path, limits: ReceptionLimits, registry_s: float) -> None:
        self.registry = Asked()
        self.heard: list[tuple[int, str]] = []
        self.hub = Hub(
            IDENTITY,
            self.registry,
            host="127.0.0.1",
            port=0,
            # Its list of nodes stays as old as the hub.
            limits=HubLimits(sync_s=600, reception=limits, registry_s=registry_s),
            listen_on=listener_of(1),
            depot=Shelf(folder),
            on_report=self._hear,
        )

    def _hear(self, node: Node, text: str) -> None:
        self.heard.append((node.slot, text))
        if text == "odd":
            raise ValueError("the fleet has a fault")

    async def invite(self, ttl_s: float = 60) -> tuple[int, Invitation]:
        return await invite(self.registry, IDENTITY, "rental", ttl_s)

    def head(self, invitation: Invitation) -> Head:
        return Head(f"127.0.0.1:{self.hub.port}", invitation.token())

    async def fetch(self, invitation: Invitation, name: str, offset: int = 0) -> bytes:
        return await asyncio.to_thread(lambda: b"".join(self.head(invitation).fetch(name, offset)))

    async def say(self, invitation: Invitation, text: str) -> None:
        await asyncio.to_thread(self.head(invitation).say, text)


@asynccontextmanager
async def reception(
    folder: Path, limits: ReceptionLimits | None = None, registry_s: float = 3
) -> AsyncIterator[Reception]:
    there = Reception(folder, limits or ReceptionLimits(), registry_s)
    async with there.hub:
        yield there


@contextmanager
def refused(reason: Reason) -> Iterator[None]:
    with pytest.raises(HeadRefuses) as error:
        yield
    assert error.value.reason is reason


async def test_who_is_invited_fetches_as_often_as_it_likes(tmp_path: Path) -> None:
    async with reception(tmp_path) as there:
        _, invitation = await there.invite()
        for _ in range(2):
            assert await there.fetch(invitation, "file") == CONTENT
            assert await there.fetch(invitation, "made") == b"for rental"
        for offset in (1, CHUNK_BYTES, len(CONTENT) - 1, len(CONTENT)):
            assert await there.fetch(invitation, "file", offset) == CONTENT[offset:]
        for name, offset in (("../content", 0), ("", 0), ("file", len(CONTENT) + 1), ("made", 2**63)):
            with refused(Reason.NOT_THERE):
                await there.fetch(invitation, name, offset)


async def test_what_an_invitation_is_worth_the_registry_says(tmp_path: Path) -> None:
    async with reception(tmp_path) as there:
        (_, joined), (_, revoked), (_, expired) = [await there.invite(ttl_s) for ttl_s in (60, 60, 0)]
        assert await there.registry.revoke_token(digest(revoked.secret))
        address = HubAddress("127.0.0.1", there.hub.port)
        await join(address, joined.token(), "node", tmp_path / "node.json")
        for invitation, reason in (
            (expired, Reason.TOKEN_EXPIRED),
            (revoked, Reason.REVOKED),
            (joined, Reason.BAD_TOKEN),
        ):
            with refused(reason):
                await there.fetch(invitation, "made")
            with refused(reason):
                await there.say(invitation, "x")
        assert there.heard == []
        # Whoever makes one up costs no question.
        asked = there.registry.found
        with refused(Reason.BAD_TOKEN):
            await there.fetch(Invitation(IDENTITY.fingerprint, bytes(32)), "made")
        assert there.registry.found == asked


async def test_a_depot_that_has_a_fault_is_asked_again_later(tmp_path: Path) -> None:
    async with reception(tmp_path, ReceptionLimits(open_s=0.1)) as there:
        _, invitation = await there.invite()
        for name in ("hanging", "failing"):
            with refused(Reason.UNAVAILABLE):
                await there.fetch(invitation, name)
        there.registry.hangs = True
    async with reception(tmp_path, registry_s=0.1) as there:
        _, invitation = await there.invite()
        there.registry.hangs = True
        with refused(Reason.UNAVAILABLE):
            await there.fetch(invitation, "made")


async def test_slow_readers_take_a_bounded_share_and_are_cut(tmp_path: Path) -> None:
    limits = ReceptionLimits(fetches=3, fetches_each=2, chunk_s=1)
    async with reception(tmp_path, limits) as there:
        (_, one), (_, other), (_, third) = [await there.invite() for _ in range(3)]

        slow = [await begun(there, invitation) for invitation in (one, one, one, other, third)]
        answers = [pending.frame.result() for pending in slow]
        taken, no = Content(64 << 20), Refused(Reason.UNAVAILABLE)
        assert answers == [taken, taken, no, taken, no]
        # The hub cuts them, and then there is room.
        await until(lambda: there.hub.stats().refused.get("slow", 0) == 3)
        assert await there.fetch(third, "made") == b"for rental"
        for pending in slow:
            pending.abort()


async def begun(there: Reception, invitation: Invitation, name: str = "large") -> PendingConnection:
    """Ask for it, and read no more than the answer's beginning."""
    dialer = Dialer(HubAddress("127.0.0.1", there.hub.port), IDENTITY.fingerprint)
    pending = await dialer.connect(PendingConnection())
    pending.transport.write(encode(Fetch(invitation.secret, 0, name)))
    await pending.frame
    return pending


async def test_a_fetch_ends_with_its_invitation(tmp_path: Path) -> None:
    async with reception(tmp_path) as there:
        (_, revoked), (_, used), (_, good) = [await there.invite() for _ in range(3)]
        fetching = [await begun(there, invitation) for invitation in (revoked, used, good)]
        await there.registry.revoke_token(digest(revoked.secret))
        await join(HubAddress("127.0.0.1", there.hub.port), used.token(), "node", tmp_path / "node.json")
        await there.hub.sync()
        got = [0, 0, 0]

        def count(number: int, data: bytes) -> None:
            got[number] += len(data)

        for number, pending in enumerate(fetching):
            # What is on the way already arrives.
            pending.data_received = partial(count, number)
            pending.read_on()
        async with asyncio.timeout(30):
            for pending in fetching:
                await pending.gone.wait()
        whole = 64 << 20
        assert max(got[:2]) < whole // 2
        assert whole - CHUNK_BYTES < got[2] <= whole


async def test_no_fetch_lasts_for_ever_however_steadily_it_is_read(tmp_path: Path) -> None:
    async with reception(tmp_path, ReceptionLimits(whole_s=0.5, chunk_s=600)) as there:
        _, invitation = await there.invite()
        pending = await begun(there, invitation)
        await until(lambda: there.hub.stats().refused.get("slow", 0) == 1)
        pending.abort()


async def test_an_invitation_fetches_so_much_and_no_more(tmp_path: Path) -> None:
    async with reception(tmp_path, ReceptionLimits(fetches_ever=3, bytes_ever=3 * len(CONTENT))) as there:
        (_, often), (_, much), (_, other) = [await there.invite() for _ in range(3)]
        for _ in range(3):
            assert await there.fetch(often, "made") == b"for rental"
        with refused(Reason.BAD_TOKEN):
            await there.fetch(often, "made")
        with pytest.raises(ConnectionError):
            await there.fetch(much, "large")
        with refused(Reason.BAD_TOKEN):
            await there.fetch(much, "made")
        assert await there.fetch(other, "file") == CONTENT


async def test_an_invitation_that_is_void_is_looked_for_once(tmp_path: Path) -> None:
    async with reception(tmp_path) as there:
        former = IDENTITY.invitation()
        for _ in range(3):
            with refused(Reason.BAD_TOKEN):
                await there.fetch(former, "made")
        assert there.registry.found == 1
        with pytest.raises(NodeRefused):
            await join(HubAddress("127.0.0.1", there.hub.port), former.token(), "node", tmp_path / "node.json")
        assert there.registry.found == 1
        # A slot's next one is another, whatever the list still says of the last.
        slot, last = await there.invite()
        assert await there.registry.revoke(slot)
        await there.hub.sync()
        again, fresh = await there.invite()
        assert again == slot
        assert await there.fetch(fresh, "made") == b"for rental"
        with refused(Reason.REVOKED):
            await there.fetch(last, "made")


async def test_what_is_said_is_heard_in_measure(tmp_path: Path) -> None:
    async with reception(tmp_path, ReceptionLimits(said_at_once=3, say_every_s=600)) as there:
        (slot, one), (other_slot, other) = await there.invite(), await there.invite()
        for text in ("", "odd", "é" * 512):
            await there.say(one, text)
        with refused(Reason.UNAVAILABLE):
            await there.say(one, "too much")
        await there.say(other, "x")
        assert there.heard == [(slot, ""), (slot, "odd"), (slot, "é" * 512), (other_slot, "x")]


async def test_a_node_that_has_joined_reports_on_its_control_connection(tmp_path: Path) -> None:
    async with reception(tmp_path, ReceptionLimits(said_at_once=2, say_every_s=600)) as there:
        slot, invitation = await there.invite()
        address = HubAddress("127.0.0.1", there.hub.port)
        credentials = await join(address, invitation.token(), "node", tmp_path / "node.json")
        up = asyncio.Event()
        agent = Agent(address, credentials, TIMING, lambda is_up: up.set() if is_up else None, listener_of(2))
        agent.report("nobody hears this")
        running = asyncio.create_task(agent.run())
        await up.wait()
        for number in range(5):
            agent.report(f"{number}")
        await until(lambda: there.hub.stats().refused.get("too_many", 0) == 3)
        assert there.heard == [(slot, "0"), (slot, "1")]
        # Too much is lost, and costs nobody the connection.
        assert there.hub.stats().nodes[0].connected
        assert there.hub.stats().reconnects == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_a_node_says_last_arrives(tmp_path: Path) -> None:
    async with reception(tmp_path) as there:
        slot, invitation = await there.invite()
        address = HubAddress("127.0.0.1", there.hub.port)
        credentials = await join(address, invitation.token(), "node", tmp_path / "node.json")
        up = asyncio.Event()
        agent = Agent(address, credentials, TIMING, lambda is_up: up.set() if is_up else None, listener_of(2))
        running = asyncio.create_task(agent.run())
        await up.wait()
        agent.report("weights: the store answered 403")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await until(lambda: there.heard)
        assert there.heard == [(slot, "weights: the store answered 403")]
