"""``video-api node token`` and ``node revoke``: for the operator, beside a running head."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.cli.duration import span
from serve_app.cli.head import settings_of_cluster
from serve_app.cli.terminal import Session, UsageProblem, sentence

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from serve_app.settings import Settings

#: Seconds in which somebody can paste the command on another machine.
_LEAST_S = 60


def token(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="Shown by `nodes` if the node gives no name.")] = "",
    expires: Annotated[
        float, span("--expires", "In which time it must be used, at least 1m. Default: 1h.", bare="m")
    ] = 3600.0,
    hub: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="How nodes reach the head. Default: FLEET_HUB, or Railway's TCP proxy.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Invite one node: print the token, and the command to run on it. In the head's shell."""
    from cluster.mesh.identity import HubIdentity
    from cluster.mesh.registry import NoFreeSlot, PostgresRegistry, invite

    if expires < _LEAST_S:
        raise UsageProblem("--expires: a token is good for 1m at least")
    settings = settings_beside_head()
    identity = HubIdentity.derived(settings.mesh_secret)

    async def work() -> tuple[int, str]:
        async with database(settings) as engine:
            slot, invitation = await invite(PostgresRegistry(engine), identity, name, expires)
            return slot, invitation.token()

    try:
        slot, text = asyncio.run(work())
    except NoFreeSlot:
        raise UsageProblem("no free slot: revoke a node, or wait until a revoked one's slot is free") from None
    address = hub or hub_address() or "HOST:PORT"
    session: Session = ctx.obj
    command = f"video-api node join --hub {address} --token {text}"
    session.show({"slot": slot, "token": text, "hub": address, "command": command}, command)


def revoke(
    ctx: typer.Context, slot: Annotated[int, typer.Argument(metavar="SLOT", help="See `video-api nodes`.")]
) -> None:
    """Drop a node: its key is void within seconds, its connections end. Its slot is free again after ten minutes.
    In the head's shell."""
    from cluster.mesh.registry import PostgresRegistry

    settings = settings_beside_head()

    async def work() -> bool:
        async with database(settings) as engine:
            return await PostgresRegistry(engine).revoke(slot)

    if not asyncio.run(work()):
        raise UsageProblem(f"slot {slot} has no node")
    ctx.obj.show({"slot": slot, "revoked": True}, f"slot {slot} is revoked")


def settings_beside_head() -> "Settings":
    """For commands beside a running head, which work on its database with its secrets."""
    from serve_app.preflight import database_fault

    try:
        settings = settings_of_cluster("production")
        if fault := database_fault(settings.database_url):
            raise UsageProblem(fault)
    except UsageProblem as problem:
        where = "This command is for the shell of the head, where its variables are set (on Railway: `railway ssh`)."
        raise UsageProblem(f"{sentence(str(problem))} {where}") from None
    return settings


@asynccontextmanager
async def database(settings: "Settings") -> AsyncIterator["AsyncEngine"]:
    """The head's. Raises UsageProblem if it does not answer."""
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(settings.database_url)
    try:
        yield engine
    except OperationalError as error:
        raise UsageProblem(f"DATABASE_URL: {error.orig}") from None
    finally:
        await engine.dispose()


def hub_address() -> str:
    """``HOST:PORT`` at which nodes reach the head, as the environment says; empty if it does not."""
    if found := os.environ.get("FLEET_HUB"):
        return found
    host, port = os.environ.get("RAILWAY_TCP_PROXY_DOMAIN"), os.environ.get("RAILWAY_TCP_PROXY_PORT")
    return f"{host}:{port}" if host and port else ""
