"""``video-api nodes``: every machine of the cluster, and why others are not rented; beside a running head."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.cli.display import moment
from serve_app.cli.node_access import database, settings_beside_head
from serve_app.cli.progress import duration

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from cluster.fleet.rental import Rental
    from cluster.mesh.registry import Node
    from serve_app.settings import Settings


def nodes(ctx: typer.Context) -> None:
    """List the machines: what each is at, what it has cost so far, what it does; and why others are not rented.
    In the head's shell."""
    found, waits = asyncio.run(_look(settings_beside_head()))
    ctx.obj.show(found, _rendered(found, waits))


async def rows(settings: "Settings") -> list[dict[str, Any]]:
    """All nodes, as they are shown. Raises UsageProblem if the database does not answer, SQLAlchemyError without the
    head's tables."""
    found, _ = await _look(settings)
    return found


async def _look(settings: "Settings") -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    from cluster.fleet.books import PostgresBooks
    from cluster.mesh.registry import PostgresRegistry

    async with database(settings) as engine:
        joined = await PostgresRegistry(engine).nodes()
        books = PostgresBooks(engine)
        rentals = await books.open_rentals()
        usd = await books.usd([each.label for each in rentals])
        doing, waits = await _jobs(engine), await _waits(engine)
    now = datetime.now(UTC)
    by_key = {each.door_key: each for each in rentals if each.door_key is not None}
    found = []
    for node in joined:
        rental = by_key.pop(node.token_hash.hex(), None)
        if rental is None and node.revoked_at is not None and node.name.startswith(f"{settings.fleet_prefix}-"):
            # It was rented, and is shut out: what is left of it is its rental, until that is given back.
            continue
        found.append(_mesh(node, now) | _rented(rental, usd, doing))
    # They are not let in yet, or no longer.
    keyless = [each for each in rentals if each.door_key is None or each.door_key in by_key]
    found += [{**_NOT_JOINED, "name": each.label, "state": "-"} | _rented(each, usd, doing) for each in keyless]
    return found, waits


async def _jobs(engine: "AsyncEngine") -> Mapping[str, Sequence[str]]:
    """Those that run, by the slot of their node."""
    from sqlalchemy import select

    from serve_app.jobs.tables import runs

    found: defaultdict[str, list[str]] = defaultdict(list)
    async with engine.connect() as db:
        query = select(runs.c.node, runs.c.job_id).where(runs.c.ended_at.is_(None)).order_by(runs.c.started_at)
        for node, job_id in await db.execute(query):
            found[node].append(job_id)
    return found


async def _waits(engine: "AsyncEngine") -> Mapping[str, str]:
    """By model, why no machine is rented for it."""
    from sqlalchemy import select

    from serve_app.jobs.conditions import BELIEVED_S
    from serve_app.jobs.database import in_seconds
    from serve_app.jobs.tables import outlooks

    query = select(outlooks.c.deployment, outlooks.c.message).where(
        outlooks.c.message.is_not(None), outlooks.c.seen_at > in_seconds(-BELIEVED_S)
    )
    async with engine.connect() as db:
        return {row.deployment: row.message for row in await db.execute(query)}


#: A node reports by being connected; twice the hub's interval without it means that it is away.
_AWAY_S = 40.0
_NOT_JOINED: Mapping[str, Any] = {"slot": None, "last_seen_at": None, "bytes_in": 0, "bytes_out": 0}


def _mesh(node: "Node", now: datetime) -> dict[str, Any]:
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


def _rented(rental: "Rental | None", usd: Mapping[str, float], doing: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Nothing of it for a machine that joined by hand."""
    if rental is None:
        return dict.fromkeys(("type", "instance", "phase", "phase_since", "usd_per_hour", "usd"), None) | {"jobs": []}
    return {
        "type": rental.node_type,
        "instance": rental.instance,
        "phase": rental.state.value,
        "phase_since": rental.since.isoformat(),
        "usd_per_hour": rental.terms.usd_per_hour,
        "usd": usd.get(rental.label, 0.0),
        "jobs": list(doing.get(rental.slot_id, ())),
    }


def _rendered(rows: Sequence[dict[str, Any]], waits: Mapping[str, str]) -> RenderableType:
    parts: list[RenderableType] = [_table(rows)]
    if waits:
        parts += [Text(), *(Text(f"{model} waits: {message}") for model, message in sorted(waits.items()))]
    return Group(*parts)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    rented = any(row["phase"] for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("SLOT", "NAME", "STATE", *(("TYPE", "PHASE", "FOR", "$/H", "$", "DOES") if rented else ())):
        table.add_column(heading, no_wrap=True)
    for heading in ("LAST SEEN", "FROM NODE", "TO NODE"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seen = moment(row["last_seen_at"]) if row["last_seen_at"] else "-"
        traffic = [f"{row[name] / 1e6:.1f} MB" for name in ("bytes_in", "bytes_out")]
        slot = "-" if row["slot"] is None else str(row["slot"])
        # A node names itself, which may look like markup.
        table.add_row(slot, Text(row["name"] or "-"), row["state"], *(_money(row) if rented else ()), seen, *traffic)
    return table


def _money(row: Mapping[str, Any]) -> Sequence[str]:
    if row["phase"] is None:
        return ("by hand", "-", "-", "-", "-", "-")
    spent = (datetime.now(UTC) - datetime.fromisoformat(row["phase_since"])).total_seconds()
    does = ", ".join(job[:8] for job in row["jobs"]) or "-"
    return (row["type"] or "-", row["phase"], duration(spent), f"{row['usd_per_hour']:.3f}", f"{row['usd']:.3f}", does)
