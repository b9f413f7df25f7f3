"""One end of the mesh as a program for tests: ``python -m tests.parts.cluster.mesh.process hub|agent …``.

The agent's token comes by environment, ``MESH_TOKEN``. What happens is printed as one JSON object per line; ``SIGUSR1``
prints the counters. The exit status is 3 if the hub refused this node. A hub forgets its nodes with its process.
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
import uvloop

from cluster.mesh.agent import Agent, NodeRefused, join
from cluster.mesh.counters import Stats
from cluster.mesh.dialer import HubAddress
from cluster.mesh.hub import Hub
from cluster.mesh.identity import Credentials, HubIdentity
from cluster.mesh.registry import invite
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry


def main() -> None:
    """Parse the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="mesh")
    ends = parser.add_subparsers(dest="end", required=True)
    hub = ends.add_parser("hub")
    hub.add_argument("--port", type=int, required=True)
    hub.add_argument("--host", default="0.0.0.0")
    hub.add_argument("--invite", type=int, default=0, help="print so many invitations at the start")
    agent = ends.add_parser("agent")
    agent.add_argument("--hub", type=HubAddress.parse, required=True, metavar="HOST:PORT")
    agent.add_argument("--state", type=Path, required=True, help="file of the node's credentials")
    agent.add_argument("--name", default=socket.gethostname())
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.install()
    try:
        asyncio.run(_hub(arguments) if arguments.end == "hub" else _agent(arguments))
    except NodeRefused as error:
        _say("refused", reason=error.reason.name.lower())
        sys.exit(3)


async def _hub(arguments: argparse.Namespace) -> None:
    registry, identity = MemoryRegistry(), HubIdentity.derived(secrets.token_bytes(32))
    async with Hub(identity, registry, host=arguments.host, port=arguments.port) as hub:
        _say("ready", port=hub.port)
        for _ in range(arguments.invite):
            slot, invitation = await invite(registry, identity, "", ttl_s=600)
            _say("invited", slot=slot, token=invitation.token())
        await _until_stopped(hub.stats)


async def _agent(arguments: argparse.Namespace) -> None:
    credentials = Credentials.load(arguments.state)
    if credentials is None:
        credentials = await join(arguments.hub, os.environ["MESH_TOKEN"], arguments.name, arguments.state)
    agent = Agent(arguments.hub, credentials, on_link=lambda up: _say("up" if up else "down"))
    running = asyncio.create_task(agent.run())
    stopping = asyncio.create_task(_until_stopped(agent.stats))
    readying = asyncio.create_task(agent.ready.wait())
    try:
        await asyncio.wait({running, stopping, readying}, return_when=asyncio.FIRST_COMPLETED)
        if readying.done():
            _say("ready", slot=agent.slot.number, address=agent.slot.address)
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, stopping, readying):
            task.cancel()
        await asyncio.gather(running, stopping, readying, return_exceptions=True)


async def _until_stopped(stats: Callable[[], Stats]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def tell() -> None:
        now = stats()
        _say(
            "stats",
            **{name: getattr(now, name) for name in now.__dataclass_fields__ if name not in _NESTED},
            refused=dict(now.refused),
            nodes=[asdict(node) for node in now.nodes],
        )

    loop.add_signal_handler(signal.SIGUSR1, tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


_NESTED = ("refused", "nodes")


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


if __name__ == "__main__":
    main()
