"""Crowds at the hub's port, and a registry that does not answer: those who were let in notice neither."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from cluster.mesh.agent import NodeRefused, join
from cluster.mesh.control import PendingConnection
from cluster.mesh.dialer import Dialer, HubAddress
from cluster.mesh.hub import HubLimits
from cluster.mesh.identity import digest, new_key
from cluster.mesh.invitation import Invitation
from cluster.mesh.registry import Node, PostgresRegistry, invite
from cluster.mesh.wire import Hello, Join, Peers, Reason, encode
from tests.parts.cluster.mesh.loopback import IDENTITY, LoopbackMesh, echo, exchange, loopback_mesh, until
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]

ROOT = Path(__file__).parents[4]
#: Round trip of a node at the other end of the world, seconds.
FAR_S = 0.1


class Moody(MemoryRegistry):
    """A registry that can be made to hang, and notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.redeemed = 0
        self.asking = 0

    async def redeem(self, secret_hash: bytes, key_hash: bytes, name: str) -> Node:
        self.redeemed += 1
        self.asking += 1
        try:
            await self.answers.wait()
        finally:
            self.asking -= 1
        return await super().redeem(secret_hash, key_hash, name)


class Deaf(MemoryRegistry):
    """Hangs in everything and does not even heed being cancelled, as a driver that waits for its server."""

    hangs = False

    async def nodes(self) -> Sequence[Node]:
        while self.hangs:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return await super().nodes()


@asynccontextmanager
async def flood(*words: object) -> AsyncIterator[None]:
    """From when all of it is under way until the block ends; then he is gone at once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.parts.cluster.mesh.flood", *map(str, words)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Nobody reads or writes the table meanwhile."""
    with psycopg.connect(database_url.replace("+psycopg", "")) as db:
        db.execute("LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE")
        yield
        db.rollback()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def ask(mesh: LoopbackMesh, secret: bytes) -> PendingConnection:
    """Begin to join; the answer has not come."""
    pending = await Dialer(mesh.address, IDENTITY.fingerprint).connect(PendingConnection())
    assert pending.transport is not None
    pending.transport.write(encode(Join(secret, digest(new_key()), "x")))
    return pending


@pytest.mark.asyncio(loop_scope="module", loop_factories=["uvloop"])
async def test_3000_joins_while_the_database_hangs(tmp_path: Path, database_url: str) -> None:
    # No deadline ends them.
    limits = HubLimits(sync_s=0.5, report_s=0.5, registry_s=1, handshake_s=300, pending=512)
    engine = create_async_engine(database_url, pool_size=2)
    registry = PostgresRegistry(engine)
    try:
        async with loopback_mesh(tmp_path, limits=limits, registry=registry, patience_s=240) as mesh:
            await mesh.serve(3, echo)
            (_, stolen), (number, invitation) = [await invite(registry, IDENTITY, "x", 600) for _ in range(2)]
            assert await exchange(mesh.via(1, 3), b"before") == b"before"
            before = descriptors()
            with locked(database_url):
                async with flood("joins", mesh.hub.port, 3000, stolen.secret.hex()):
                    assert await exchange(mesh.via(1, 3), b"meanwhile") == b"meanwhile"
                    # Half of the places for one source; a dozen connections to the database.
                    assert descriptors() < before + 256 + 40
                    with pytest.raises(TimeoutError):
                        await mesh.hub.sync()
                async with asyncio.timeout(20):
                    # The database hangs still.
                    await until(lambda: mesh.nobody_waits() and descriptors() < before + 40)
                assert await exchange(mesh.via(1, 3), b"after") == b"after"
            # Who was invited comes in as soon as it answers again.
            async with asyncio.timeout(30):
                while True:
                    try:
                        joined = await join(mesh.address, invitation.token(), "x", tmp_path / "late" / "node.json")
                        break
                    except ConnectionError:
                        await asyncio.sleep(0.2)
            assert joined.slot == number
    finally:
        await engine.dispose()


async def test_made_up_tokens_are_no_question_to_the_registry(tmp_path: Path) -> None:
    registry = Moody()
    async with loopback_mesh(tmp_path, registry=registry) as mesh:
        asked = registry.redeemed
        registry.answers.clear()
        for _ in range(20):
            answer = await (await ask(mesh, os.urandom(32))).frame
            assert answer.reason is Reason.BAD_TOKEN  # type: ignore[union-attr]
        assert registry.redeemed == asked
        registry.answers.set()
        # Half of a true one does not help.
        true = IDENTITY.invitation().secret
        for forged in (true[:16] + os.urandom(16), os.urandom(16) + true[16:], true[16:] + true[:16]):
            assert (await (await ask(mesh, forged)).frame).reason is Reason.BAD_TOKEN  # type: ignore[union-attr]
        assert registry.redeemed == asked


async def test_tokens_from_before_secrets_had_a_mark_are_good(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        old = Invitation(IDENTITY.fingerprint, os.urandom(32))
        await mesh.registry.invite("x", digest(old.secret), 60)
        # As at the start of a hub, which reads the list before anybody can knock.
        await mesh.hub.sync()
        assert (await join(mesh.address, old.token(), "x", tmp_path / "x" / "node.json")).slot == 4


async def test_who_leaves_while_the_registry_thinks_is_forgotten(tmp_path: Path) -> None:
    registry = Moody()
    async with loopback_mesh(tmp_path, registry=registry) as mesh:
        _, invitation = await invite(registry, IDENTITY, "x", 60)
        registry.answers.clear()
        waiting = [await ask(mesh, invitation.secret) for _ in range(20)]
        await until(lambda: registry.asking == mesh.limits.joining)
        for pending in waiting:
            pending.abort()
        await until(mesh.nobody_waits)
        # Of the questions some hang still, and those that had no turn yet are never asked.
        assert (registry.asking, registry.redeemed) == (mesh.limits.joining, 2 + mesh.limits.joining)
        registry.answers.set()
        _, invitation = await invite(registry, IDENTITY, "y", 60)
        assert (await join(mesh.address, invitation.token(), "y", tmp_path / "y" / "node.json")).slot == 5
        assert registry.redeemed == 3 + mesh.limits.joining


async def test_who_talks_on_instead_of_waiting_is_cut_off(tmp_path: Path) -> None:
    registry = Moody()
    async with loopback_mesh(tmp_path, registry=registry) as mesh:
        _, invitation = await invite(registry, IDENTITY, "x", 60)
        registry.answers.clear()
        pending = await ask(mesh, invitation.secret)
        await until(lambda: registry.asking == 1)
        assert pending.transport is not None
        pending.transport.write(bytes(100_000))
        await pending.gone.wait()
        await until(mesh.nobody_waits)


async def test_joining_has_a_deadline(tmp_path: Path) -> None:
    registry = Moody()
    limits = HubLimits(registry_s=0.5, sync_s=0.2)
    async with loopback_mesh(tmp_path, registry=registry, limits=limits) as mesh:
        _, invitation = await invite(registry, IDENTITY, "x", 60)
        registry.answers.clear()
        answers = [await (await ask(mesh, invitation.secret)).frame for _ in range(2)]
        # Not for good: the node will ask again.
        assert {answer.reason for answer in answers} == {Reason.UNAVAILABLE}  # type: ignore[union-attr]
        registry.answers.set()


async def test_revocations_do_not_wait_for_joins(tmp_path: Path) -> None:
    registry = Moody()
    # Joins wait longer than the revocation may take.
    limits = HubLimits(sync_s=0.2, report_s=0.2, registry_s=60)
    async with loopback_mesh(tmp_path, registry=registry, limits=limits) as mesh:
        _, invitation = await invite(registry, IDENTITY, "x", 60)
        registry.answers.clear()
        waiting = [await ask(mesh, invitation.secret) for _ in range(30)]
        await until(lambda: registry.asking == mesh.limits.joining)
        await registry.revoke(3)
        with pytest.raises(NodeRefused):
            await asyncio.wait_for(mesh.nodes[3].running, 20)
        assert registry.asking == mesh.limits.joining
        for pending in waiting:
            pending.abort()


async def test_a_join_is_not_undone_by_a_list_that_is_older(tmp_path: Path) -> None:
    class Slow(MemoryRegistry):
        """Takes its list at once and gives it late."""

        gives = asyncio.Event()

        async def nodes(self) -> Sequence[Node]:
            taken = await super().nodes()
            await self.gives.wait()
            return taken

    registry = Slow()
    registry.gives.set()
    async with loopback_mesh(tmp_path, registry=registry, limits=HubLimits(sync_s=60)) as mesh:
        registry.gives.clear()
        reading = asyncio.create_task(mesh.hub.sync())
        await asyncio.sleep(0)
        node = await mesh.start(await mesh.enrol())
        registry.gives.set()
        await reading
        assert {node.slot for node in mesh.hub.stats().nodes} == {2, 3, 4}
        assert not node.running.done()


async def test_a_registry_that_hangs_for_good_stops_nothing(tmp_path: Path) -> None:
    registry = Deaf()
    limits = HubLimits(sync_s=0.1, report_s=0.1, registry_s=0.2)
    async with loopback_mesh(tmp_path, registry=registry, limits=limits) as mesh:
        await mesh.serve(3, echo)
        registry.hangs = True
        before = len(asyncio.all_tasks())
        for _ in range(10):
            with pytest.raises(TimeoutError):
                await mesh.hub.sync()
            assert await exchange(mesh.via(1, 3), b"never mind") == b"never mind"
        # One question hangs, not one for each time it was asked.
        assert len(asyncio.all_tasks()) <= before + 4
        async with asyncio.timeout(20):
            await mesh.hub.close()
        registry.hangs = False


@pytest.mark.asyncio(loop_scope="module", loop_factories=["uvloop"])
async def test_a_flood_of_silence_pushes_out_nobody_from_far_away(tmp_path: Path) -> None:
    """Who is honest speaks at once, though his words are long on their way."""
    # At a thousand a second those who say nothing are gone after a quarter of a second. If they counted as pending they
    # would be gone before a round trip, and whoever is among them as well.
    limits = HubLimits(silent=512, pending=64, sync_s=0.2)
    async with loopback_mesh(tmp_path, limits=limits) as mesh, far_away(mesh.address) as address:
        credentials = mesh.nodes[2].credentials

        async def come_in() -> bool:
            pending = await Dialer(address, credentials.fingerprint).connect(PendingConnection())
            assert pending.transport is not None
            pending.transport.write(encode(Hello(credentials.slot, credentials.key, os.urandom(16))))
            try:
                return isinstance(await pending.frame, Peers)
            finally:
                pending.abort()

        async with flood("silence", mesh.hub.port, 1000):
            came_in = 0
            while came_in < 20:
                # Who is pushed out is told so by a reset. A busy machine may take too long for anything.
                with suppress(TimeoutError):
                    came_in += await come_in()
        assert mesh.hub.stats().refused["crowded"] > 100


@asynccontextmanager
async def far_away(hub: HubAddress) -> AsyncIterator[HubAddress]:
    """Where a hub is that is half of :data:`FAR_S` away: everything arrives that much later, in its order."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            loop.call_later(FAR_S / 2, writer.write, data)
        loop.call_later(FAR_S / 2, writer.close)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The first words follow the connection at once.
        await asyncio.sleep(FAR_S / 2)
        far_reader, far_writer = await asyncio.open_connection(hub.host, hub.port)
        outcomes = await asyncio.gather(pump_now(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, OSError) for outcome in outcomes)

    async def pump_now(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What has come while the connection was on its way goes right after it; the rest takes its time."""
        writer.write(await reader.read(65536))
        await pump(reader, writer)

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield HubAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
