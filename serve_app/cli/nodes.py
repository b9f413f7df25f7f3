"""``video-api nodes``, ``node token`` and ``node revoke``: for the operator, beside a running head."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from serve_app.cli.display import moment
from serve_app.cli.head import settings_of_cluster
from serve_app.cli.terminal import Session, UsageProblem, sentence

if TYPE_CHECKING:
    from cluster.mesh.registry import Node, PostgresRegistry
    from serve_app.settings import Settings


def token(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="Shown by `nodes` if the node gives no name.")] = "",
    ttl: Annotated[float, typer.Option(min=1, help="Minutes in which it must be used.")] = 60.0,
    hub: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="How nodes reach the head. Default: Railway's TCP proxy.", show_default=False
        ),
    ] = "",
) -> None:
    """Invite one node: print the token, and the command to run on it. Needs the head's DATABASE_URL and secrets."""
    from cluster.mesh.identity import HubIdentity
    from cluster.mesh.registry import NoFreeSlot, invite

    settings = settings_beside_head()
    identity = HubIdentity.derived(settings.mesh_secret)

    async def work() -> tuple[int, str]:
        async with _registry(settings) as registry:
            slot, invitation = await invite(registry, identity, name, ttl * 60)
            return slot, invitation.token()

    try:
        slot, text = _run(work())
    except NoFreeSlot:
        raise UsageProblem("no free slot: revoke a node, or wait until a revoked one's slot is free") from None
    address = hub or railway_proxy() or "HOST:PORT"
    session: Session = ctx.obj
    command = f"video-api node join --hub {address} --token {text}"
    session.show({"slot": slot, "token": text, "hub": address, "command": command}, command)


def revoke(ctx: typer.Context, slot: Annotated[int, typer.Argument(help="See `video-api nodes`.")]) -> None:
    """Drop a node: its key is void within seconds, its connections end. Its slot is free again after ten minutes."""
    settings = settings_beside_head()

    async def work() -> bool:
        async with _registry(settings) as registry:
            return await registry.revoke(slot)

    if not _run(work()):
        raise UsageProblem(f"slot {slot} has no node")
    ctx.obj.show({"slot": slot, "revoked": True}, f"slot {slot} is revoked")


def nodes(ctx: typer.Context) -> None:
    """List the nodes: slot, state, when last seen, traffic since it joined."""
    found = _run(rows(settings_beside_head()))
    ctx.obj.show(found, _table(found))


async def rows(settings: "Settings") -> list[dict[str, Any]]:
    """All nodes, as they are shown. Raises UsageProblem if the database does not answer, SQLAlchemyError without the
    head's tables."""
    async with _registry(settings) as registry:
        found = await registry.nodes()
    now = datetime.now(UTC)
    return [_row(node, now) for node in found]


#: A node reports by being connected; twice the hub's interval without it means that it is away.
_AWAY_S = 40.0


def _row(node: "Node", now: datetime) -> dict[str, Any]:
    seen = node.last_seen_at
    if node.revoked_at is not None:
        state = "revoked"
    elif node.joined_at is None:
        state = "invited" if node.token_expires_at > now else "expired"
    else:
        state = "up" if seen is not None and (now - seen).total_seconds() < _AWAY_S else "away"
    return {
        "slot": node.slot,
        "name": node.name,
        "state": state,
        "last_seen_at": seen and seen.isoformat(),
        "bytes_in": node.bytes_in,
        "bytes_out": node.bytes_out,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("SLOT", "NAME", "STATE", "LAST SEEN", "FROM NODE", "TO NODE"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seen = moment(row["last_seen_at"]) if row["last_seen_at"] else "-"
        traffic = [f"{row[name] / 1e6:.1f} MB" for name in ("bytes_in", "bytes_out")]
        table.add_row(str(row["slot"]), row["name"] or "-", row["state"], seen, *traffic)
    return table


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
async def _registry(settings: "Settings") -> AsyncIterator["PostgresRegistry"]:
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.ext.asyncio import create_async_engine

    from cluster.mesh.registry import PostgresRegistry

    engine = create_async_engine(settings.database_url)
    try:
        yield PostgresRegistry(engine)
    except OperationalError as error:
        raise UsageProblem(f"DATABASE_URL: {error.orig}") from None
    finally:
        await engine.dispose()


def _run(work: Any) -> Any:
    return asyncio.run(work)


def railway_proxy() -> str:
    host, port = os.environ.get("RAILWAY_TCP_PROXY_DOMAIN"), os.environ.get("RAILWAY_TCP_PROXY_PORT")
    return f"{host}:{port}" if host and port else ""
