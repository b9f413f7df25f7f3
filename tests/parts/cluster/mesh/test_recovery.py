"""What comes and goes: the hub, a node, the path between them."""

import asyncio
import logging
from pathlib import Path

import pytest
import structlog

from cluster.mesh.hub import HubLimits
from tests.parts.cluster.mesh.loopback import LoopbackMesh, echo, exchange, loopback_mesh

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]


async def test_hub_restart(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, nodes=3) as mesh:
        for number in (1, 3):
            await mesh.serve(number, echo)
        for node in mesh.nodes.values():
            assert await node.link.get() is True
        reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await mesh.hub.close()
        for node in mesh.nodes.values():
            assert await node.link.get() is False
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        # The nodes' listeners stand: a flow that begins now waits for the hub.
        waiting = asyncio.create_task(exchange(mesh.via(2, 1), b"patience"))
        await mesh.restart_hub()
        for node in mesh.nodes.values():
            assert await node.link.get() is True
            assert node.agent.stats().reconnects == 1
        assert await waiting == b"patience"
        assert await exchange(mesh.via(1, 3), b"again") == b"again"


async def test_lost_control_connection_keeps_flows(tmp_path: Path) -> None:
    """A TCP proxy may drop one connection and not the others."""
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(3, echo)
        node = mesh.nodes[3]
        assert await node.link.get() is True
        reader, writer = await asyncio.open_connection(*mesh.via(1, 3))
        session = mesh.hub._router.session(3)
        assert session is not None
        session.control.abort()
        assert [await node.link.get(), await node.link.get()] == [False, True]
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        writer.close()
        assert mesh.hub.stats().reconnects == 1


async def test_silent_node_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """Frozen without a word, as behind a dead link: TCP stays up all the while."""
    limits = HubLimits(silence_s=1, sync_s=0.2)
    async with loopback_mesh(tmp_path, limits=limits) as mesh:
        await mesh.serve(3, echo)
        reader, writer = await asyncio.open_connection(*mesh.via(1, 3))
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        control = mesh.nodes[3].agent._control
        assert control is not None
        control._transport.pause_reading()  # type: ignore[union-attr]
        control.send = lambda frame: None  # type: ignore[method-assign]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        assert mesh.hub.stats().dead == 1
        control._transport.resume_reading()  # type: ignore[union-attr]
        assert await exchange(mesh.via(1, 3), b"back") == b"back"


async def test_the_head_reaches_who_has_just_joined(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*mesh.via(1, 3))
        await mesh.start(await mesh.enrol())
        await mesh.serve(3, echo)
        assert await exchange(mesh.via(1, 3), b"new here") == b"new here"


async def test_registry_outage_leaves_the_mesh_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(3, echo)
        failed = asyncio.Event()

        async def fail(*_: object) -> None:
            failed.set()
            raise OSError("the database is away")

        with monkeypatch.context() as patch:
            for method in ("nodes", "redeem", "report"):
                patch.setattr(mesh.registry, method, fail)
            await failed.wait()
            with pytest.raises(ConnectionError):
                await mesh.enrol()
            assert await exchange(mesh.via(1, 3), b"never mind") == b"never mind"
        await mesh.start(await mesh.enrol())


async def test_no_secret_in_any_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        async with loopback_mesh(tmp_path) as mesh:
            keys = [node.credentials.key for node in mesh.nodes.values()]
            await _disturb(mesh)
            text = f"{lines}{caplog.text}{mesh.hub.stats()}{mesh.nodes[2].credentials}{mesh.registry._nodes}"  # type: ignore[attr-defined]
    assert "mesh.node_up" in text
    for key in keys:
        for form in (key.hex(), repr(key)[2:-1], key.hex().upper()):
            assert form not in text


async def _disturb(mesh: LoopbackMesh) -> None:
    await mesh.restart_hub()
    with pytest.raises(ConnectionError):
        await exchange(mesh.via(1, 3), b"nobody")
    await mesh.revoke(3)
