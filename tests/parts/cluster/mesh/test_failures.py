"""What nobody expected: it costs one connection, or ends the whole visibly; nothing hangs, nothing goes unseen."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from cluster.mesh import agent, router
from cluster.mesh.agent import Agent
from tests.parts.cluster.mesh.loopback import (
    TIMING,
    LoopbackMesh,
    echo,
    exchange,
    listener_of,
    loopback_mesh,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]

#: Less than the 20 s that a flow may wait for its other end; a busy machine may need some of it.
SOON_S = 15.0
#: What the message of an exception may quote.
KEY = "0123456789abcdef"


class Unforeseen(Exception):
    """Like a bug."""


async def fail(*_: object, **__: object) -> Any:
    raise Unforeseen(KEY)


async def is_cut(mesh: LoopbackMesh, at: int, to: int) -> None:
    """The program that connects is told, and soon."""
    async with asyncio.timeout(SOON_S):
        with pytest.raises(ConnectionError):
            await exchange(mesh.via(at, to), b"anybody?")


async def with_logs(work: Callable[[], Awaitable[None]]) -> list[Any]:
    """The failures that were logged."""
    with structlog.testing.capture_logs() as logs:
        await work()
    assert KEY not in str(logs)
    return [line for line in logs if line["event"] == "mesh.unexpected_failure"]


async def test_on_the_way_from_the_hub_to_a_program_of_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(3, echo)
        monkeypatch.setattr(router, "connect", fail)
        (failure,) = await with_logs(lambda: is_cut(mesh, 2, 1))
        assert (failure["error"], failure["task"]) == ("Unforeseen", "FlowRouter._carry")
        assert await exchange(mesh.via(1, 3), b"others go on") == b"others go on"
        assert not mesh.hub.failed.done()


async def test_on_the_way_from_a_node_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(1, echo)
        with monkeypatch.context() as patch:
            patch.setattr(mesh.nodes[2].agent._dialer, "connect", fail)
            (failure,) = await with_logs(lambda: is_cut(mesh, 2, 1))
            assert failure["error"] == "Unforeseen"
        assert await exchange(mesh.via(2, 1), b"the next one") == b"the next one"
        assert not mesh.nodes[2].running.done()


@pytest.mark.parametrize("step", ["connect", "splice"])
async def test_on_the_way_from_the_hub_to_a_program_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(2, echo)
        with monkeypatch.context() as patch:
            # The second one fails when both connections of the flow stand.
            patch.setattr(agent, step, fail if step == "connect" else fail_at_once)
            (failure,) = await with_logs(lambda: is_cut(mesh, 1, 2))
            assert failure["error"] == "Unforeseen"
        assert await exchange(mesh.via(1, 2), b"the next one") == b"the next one"
        assert not mesh.nodes[2].running.done()


def fail_at_once(*_: object) -> None:
    raise Unforeseen


async def test_while_a_connection_is_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(3, echo)
        with monkeypatch.context() as patch:
            patch.setattr(mesh.hub._router, "open", fail_at_once)
            assert await with_logs(lambda: is_cut(mesh, 2, 1))
        await until(mesh.nobody_waits)
        assert await exchange(mesh.via(1, 3), b"others go on") == b"others go on"


async def test_in_what_a_node_says_on_its_control_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That connection ends, the node comes back, and what it was asked it is asked again."""
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        link = mesh.nodes[2].link
        assert await link.get() is True
        with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
            patch.setattr(mesh.hub._router, "undialable", fail_at_once)
            asking = asyncio.create_task(is_cut(mesh, 1, 2))
            async with asyncio.timeout(SOON_S):
                assert await link.get() is False
        assert "ControlConnection" in [line.get("protocol") for line in logs]
        await asking


async def test_in_a_loop_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        monkeypatch.setattr(mesh.hub._router, "cut_dead", fail_at_once)

        async def ends() -> None:
            async with asyncio.timeout(SOON_S):
                with pytest.raises(Unforeseen):
                    await mesh.hub.failed

        (failure,) = await with_logs(ends)
        assert failure["error"] == "Unforeseen"


async def test_in_a_loop_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and nothing of it is left: not even a program's flow that waits."""
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        other = Agent(mesh.address, await mesh.enrol(), TIMING, listen_on=listener_of(9))
        monkeypatch.setattr(other._listeners, "serve", fail)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(Unforeseen):
                await other.run()
        await until(lambda: mesh.hub.stats().nodes[-1].connected is False)


async def test_flows_that_wait_for_the_hub_end_with_their_agent(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        link = mesh.nodes[2].link
        assert await link.get() is True
        await mesh.hub.close()
        assert await link.get() is False
        reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
        writer.write(b"patience")
        await asyncio.sleep(0.1)
        mesh.nodes[2].running.cancel()
        async with asyncio.timeout(SOON_S):
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
        writer.close()
