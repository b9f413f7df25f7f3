"""Whoever should not be let in, or not be let do that: refused, counted, and the mesh works on."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.mesh.agent import Agent, NodeRefused, join
from cluster.mesh.dialer import WrongHub
from cluster.mesh.hub import HubLimits
from cluster.mesh.identity import Credentials, HubIdentity, new_key
from cluster.mesh.invitation import Invitation, client_context
from cluster.mesh.pieces import END
from cluster.mesh.plan import HEAD, slot
from cluster.mesh.registry import invite
from cluster.mesh.wire import Accept, Dial, Open, Peers, Ping, Reason, Refused, encode
from tests.parts.cluster.mesh.loopback import (
    IDENTITY,
    OFFSET,
    TIMING,
    LoopbackMesh,
    echo,
    exchange,
    listener_of,
    loopback_mesh,
    until,
)
from tests.ports import block

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]


@asynccontextmanager
async def watched(tmp_path: Path, limits: HubLimits | None = None) -> AsyncIterator[LoopbackMesh]:
    """A mesh that must work before and after, on the flow that was there all along and on a new one."""
    async with loopback_mesh(tmp_path, limits=limits) as mesh:
        await mesh.serve(1, echo)
        await mesh.serve(3, echo)
        reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
        yield mesh
        writer.write(b"old flow")
        assert await reader.readexactly(8) == b"old flow"
        writer.close()
        assert await exchange(mesh.via(1, 3), b"new flow") == b"new flow"


def made_up(hub: HubIdentity) -> Invitation:
    return Invitation(hub.fingerprint, new_key())


async def refused(mesh: LoopbackMesh, reason: str, count: int = 1) -> None:
    await until(lambda: mesh.hub.stats().refused.get(reason, 0) >= count)


async def knock(mesh: LoopbackMesh, data: bytes) -> bytes:
    """What the hub answers to these bytes inside TLS before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.hub.port, ssl=client_context())
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def test_wrong_token(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        with pytest.raises(NodeRefused) as error:
            await join(mesh.address, made_up(IDENTITY).token(), "x", tmp_path / "x" / "node.json")
        assert error.value.reason is Reason.BAD_TOKEN
        await refused(mesh, "bad_token")


async def test_token_is_good_once_but_a_lost_answer_is_forgiven(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        _, invitation = await invite(mesh.registry, IDENTITY, "x", 60)
        first = tmp_path / "a" / "node.json"
        joined = await join(mesh.address, invitation.token(), "x", first)
        assert Credentials.load(first) == joined
        with pytest.raises(NodeRefused) as error:
            await join(mesh.address, invitation.token(), "x", tmp_path / "b" / "node.json")
        assert error.value.reason is Reason.BAD_TOKEN
        # As if the process had died before the answer came: the key is on disk, the slot is not.
        first.unlink()
        (tmp_path / "a" / "node.json.key").write_bytes(joined.key)
        assert await join(mesh.address, invitation.token(), "x", first) == joined


async def test_expired_and_withdrawn_tokens(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        for ttl, withdraw, reason in ((0, False, Reason.TOKEN_EXPIRED), (60, True, Reason.REVOKED)):
            number, invitation = await invite(mesh.registry, IDENTITY, "x", ttl)
            if withdraw:
                await mesh.revoke(number)
            with pytest.raises(NodeRefused) as error:
                await join(mesh.address, invitation.token(), "x", tmp_path / "x" / "node.json")
            assert error.value.reason is reason


async def test_wrong_fingerprint_gets_no_secret(tmp_path: Path) -> None:
    other = HubIdentity.derived(bytes(32))
    async with watched(tmp_path) as mesh:
        with pytest.raises(WrongHub):
            await join(mesh.address, other.invitation().token(), "x", tmp_path / "x" / "node.json")
        fooled = replace(mesh.nodes[2].credentials, fingerprint=other.fingerprint)
        agent = Agent(mesh.address, fooled, TIMING, listen_on=listener_of(9))
        running = asyncio.create_task(agent.run())
        await until(lambda: agent.stats().refused.get("wrong_fingerprint", 0) >= 2)
        running.cancel()
        # The hub saw them leave without a word.
        await refused(mesh, "left", 3)
        assert mesh.hub.stats().reconnects == 0


async def test_wrong_key_and_somebody_elses_slot(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        two, three = (mesh.nodes[number].credentials for number in (2, 3))
        for wrong in (replace(two, key=new_key()), replace(two, key=three.key), replace(two, slot=77)):
            with pytest.raises(NodeRefused) as error:
                await Agent(mesh.address, wrong, TIMING, listen_on=listener_of(9)).run()
            assert error.value.reason is Reason.BAD_KEY
        await knock(mesh, encode(Open(2, three.key, 1, block(HEAD)[OFFSET])))
        await refused(mesh, "bad_key", 4)


async def test_second_process_with_the_key_replaces_the_first(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(1, echo)
        old = mesh.nodes[2]
        reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        node = await mesh.start_beside(old.credentials)
        with pytest.raises(NodeRefused) as error:
            await old.running
        assert error.value.reason is Reason.REPLACED
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()
        assert await exchange(("127.78.9.1", mesh.via(2, 1)[1]), b"the new one") == b"the new one"
        assert node.agent.down_since is None
        await refused(mesh, "replaced")


async def test_revoking_cuts_live_flows_and_frees_nothing_yet(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(3, echo)
        await mesh.serve(1, echo)
        flows = [await asyncio.open_connection(*mesh.via(at, to)) for at, to in ((1, 3), (3, 1), (2, 1))]
        for reader, writer in flows:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        # By another process, so the hub has to find out by itself.
        assert await mesh.registry.revoke(3)
        with pytest.raises(NodeRefused) as error:
            await mesh.nodes[3].running
        assert error.value.reason is Reason.REVOKED
        for reader, writer in flows[:2]:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
        reader, writer = flows[2]
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        writer.close()
        with pytest.raises(NodeRefused):
            await Agent(mesh.address, mesh.nodes[3].credentials, TIMING, listen_on=listener_of(9)).run()
        await refused(mesh, "revoked", 1)
        # Nobody listens for it any more, and in quarantine it goes to nobody else.
        while True:
            try:
                (await asyncio.open_connection(*mesh.via(1, 3)))[1].transport.abort()
            except ConnectionRefusedError:
                break
            except ConnectionResetError:
                # Still listened for, and cut at once.
                pass
            await asyncio.sleep(0.02)
        assert (await invite(mesh.registry, IDENTITY, "x", 60))[0] == 4


async def test_destinations_outside_the_plan(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        key = mesh.nodes[2].credentials.key
        port = block(slot(3))[OFFSET]
        needed = {HEAD.node_manager, HEAD.object_manager, HEAD.gcs, HEAD.http, *HEAD.workers}
        # Of the head whatever Ray on a node does not need, ports of other slots, and what else may run there.
        outside = [(1, other) for other in block(HEAD) if other not in needed]
        outside += [(1, other) for other in (0, 22, 5432, 6379, 8265, 10001, mesh.hub.port, port, 65535)]
        # Of other nodes, and of itself, nothing.
        outside += [(number, other) for number in (2, 3) for other in (*slot(number).forwarded, 22, HEAD.gcs)]
        outside += [(4, block(slot(4))[OFFSET]), (0, port), (353, port), (65535, port)]
        for target, where in outside:
            assert await knock(mesh, encode(Open(2, key, target, where)) + END) == b""
        assert mesh.hub.stats().refused["outside_plan"] == len(outside)
        # What is needed is not refused, only nobody is there; the echo's port is in use all along.
        for where in needed - {block(HEAD)[OFFSET]}:
            await knock(mesh, encode(Open(2, key, 1, where)))
        assert mesh.hub.stats().refused["outside_plan"] == len(outside)


async def test_agent_forwards_to_its_own_ports_only(tmp_path: Path) -> None:
    """Not even its hub can use a node as a way into the machine."""
    async with watched(tmp_path) as mesh:
        session = mesh.hub._router.session(2)
        assert session is not None
        agents = (slot(2).dashboard_agent_listen, slot(2).runtime_env_agent)
        for port in (22, HEAD.gcs, block(slot(3))[OFFSET], block(slot(2))[6], *agents):
            session.control.send(Dial(bytes(16), port))
        await until(lambda: mesh.nodes[2].agent.stats().refused.get("outside_plan", 0) == 6)


async def test_answers_to_no_question(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        assert await knock(mesh, encode(Accept(2, mesh.nodes[2].credentials.key, bytes(16)))) == b""
        await refused(mesh, "unknown_flow")


async def test_garbage(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(100),
            b"\x16\x03\x01\xff\xff" + random.randbytes(500),
            b"SSH-2.0-x\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", mesh.hub.port)
            writer.write(data)
            with suppress(ConnectionError):
                # At most an alert.
                assert len(await reader.read()) <= 7
            writer.close()
        await until(lambda: sum(mesh.hub.stats().refused.values()) == 4)
        frames = (
            b"GET / HTTP/1.1\r\n\r\n",
            b"vm\x02\x03\x00\x00",
            b"vm\x01\x63\x00\x00",
            b"vm\x01\x04\xff\xff" + bytes(70_000),
        )
        for data in (
            *frames,
            encode(Ping(1)),
            encode(Peers((1,))),
            encode(Refused(Reason.REVOKED)),
            random.randbytes(99),
        ):
            assert await knock(mesh, data) == b""
        await refused(mesh, "malformed", 8)


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with watched(tmp_path) as mesh:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", mesh.hub.port, ssl=context)
        await refused(mesh, "not_tls")


async def test_slow_loris(tmp_path: Path) -> None:
    """Hundreds of connections that say nothing, in TCP, in TLS's handshake and after it."""
    limits = HubLimits(handshake_s=1, silent=32, pending=32, sync_s=0.2)
    async with watched(tmp_path, limits) as mesh:
        lorises = []
        for number in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", mesh.hub.port)
            if number % 2:
                writer.write(b"\x16\x03\x01")
            lorises.append(writer)
            if number % 20 == 0:
                # Nobody honest has to wait for them.
                assert await exchange(mesh.via(1, 3), b"in between") == b"in between"
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", mesh.hub.port, ssl=client_context())
            writer.write(b"vm")
            lorises.append(writer)
        await refused(mesh, "crowded", 100)
        await refused(mesh, "slow", 3)
        # All were hung up on, not forgotten.
        await until(mesh.nobody_waits)
        for writer in lorises:
            writer.transport.abort()


async def test_node_that_breaks_the_stream_loses_only_that_flow(tmp_path: Path) -> None:
    async with watched(tmp_path) as mesh:
        key = mesh.nodes[2].credentials.key
        for wrong in (b"\x00\xff\xff\xff", END + b"\x00\x00\x00\x01x", b"\xff\xff\xff\xff"):
            answer = await knock(mesh, encode(Open(2, key, 1, block(HEAD)[OFFSET])) + wrong)
            # No more than its own end and the confirmation of ours.
            assert len(answer) <= 8


async def test_too_many_flows(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, limits=HubLimits(flows_per_node=3)) as mesh:
        await mesh.serve(1, echo)
        flows = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            flows.append(writer)
        with pytest.raises(ConnectionError):
            await exchange(mesh.via(2, 1), b"one too many")
        assert await exchange(mesh.via(3, 1), b"others may") == b"others may"
        await refused(mesh, "too_many")
        for writer in flows:
            writer.close()
