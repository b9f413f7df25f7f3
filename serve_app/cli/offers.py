"""``video-api offers``: what could be rented now, what it would cost in all, and why the rest would not be taken."""

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dotenv import dotenv_values
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.cli.progress import duration
from serve_app.cli.terminal import Code, CommandFailed, UsageProblem
from serve_app.cli.work import USES

if TYPE_CHECKING:
    from cluster.vast.client import VastClient
    from cluster.vast.node_type import NodeType
    from cluster.vast.offers import Ranking
    from cluster.vast.search import Market, Query


MAKE_A_KEY = "Make a key at https://cloud.vast.ai/manage-keys/."


def offers(
    ctx: typer.Context,
    node_type: Annotated[
        str, typer.Option("--type", metavar="NAME", help="gpu_a100, gpu_40gb or gpu_4090.", show_default=False)
    ],
    jobs: Annotated[int, typer.Option(min=1, help="Rank by what so many jobs on one machine would cost.")] = 20,
    trust_any_host: Annotated[
        bool,
        typer.Option(
            "--trust-any-host",
            help="Also hosts that are not verified, or in no datacenter. Whoever runs the machine can run code in Ray's"
            " processes on the head, and sees all users' media.",
        ),
    ] = False,
    fitting_only: Annotated[
        bool, typer.Option("--fitting-only", help="Fewer searches, of which Vast allows so many a day; no reasons.")
    ] = False,
    block: Annotated[
        list[int] | None,
        typer.Option(metavar="MACHINE", help="Leave this machine out; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """List what Vast.ai offers, cheapest in all first. Needs VAST_API_KEY. Nothing is rented."""
    from cluster.vast import search
    from cluster.vast.node_type import NODE_TYPES
    from cluster.vast.offers import rank

    if node_type not in NODE_TYPES:
        raise UsageProblem(f"--type {node_type}: there are {', '.join(NODE_TYPES)}")
    node = replace(NODE_TYPES[node_type], trust_any_host=trust_any_host)
    market = _look(search.fitting(node) if fitting_only else search.market(node))
    ranking = rank(market.offers, node, USES[node_type].work(jobs), frozenset(block or []))
    data = _data(node, jobs, market, ranking)
    ctx.obj.show(data, _rendered(data))


def _look(query: "Query") -> "Market":
    from cluster.vast import errors
    from cluster.vast.search import pages

    client = vast_client()
    if client is None:
        raise UsageProblem(f"VAST_API_KEY is not set. {MAKE_A_KEY}")

    async def work() -> "Market":
        async with client:
            return await pages(query, client.search)

    try:
        return asyncio.run(work())
    except errors.Unauthorized as error:
        raise CommandFailed(f"{error} Is VAST_API_KEY right, and may it search?", Code.REFUSED) from None
    except (errors.SearchQuotaExceeded, errors.Refused) as error:
        raise CommandFailed(str(error), Code.REFUSED) from None
    except errors.VastError as error:
        raise CommandFailed(str(error), Code.UNREACHABLE) from None


def vast_client() -> "VastClient | None":
    """By VAST_API_KEY and VAST_URL; None without a key. Raises UsageProblem for what can't be one."""
    from cluster.vast.client import VastClient
    from cluster.vast.exchange import BASE_URL

    found = {name: value for name, value in dotenv_values(".env", interpolate=False).items() if value} | dict(
        os.environ
    )
    key = found.get("VAST_API_KEY", "").strip()
    if not key:
        return None
    try:
        return VastClient(key, found.get("VAST_URL") or BASE_URL)
    except ValueError as error:
        raise UsageProblem(f"VAST_API_KEY or VAST_URL: {error}") from None


def _data(node: "NodeType", jobs: int, market: "Market", ranking: "Ranking") -> dict[str, Any]:
    return {
        "type": node.name,
        "jobs": jobs,
        "complete": market.complete,
        "unreadable": list(market.unreadable),
        "kept": [
            {
                "offer_id": each.offer.id,
                "machine_id": each.offer.machine_id,
                "gpu": each.offer.gpu_name,
                "location": each.offer.geolocation,
                "usd_per_hour": each.offer.dph_total,
                "total_usd": each.cost.total_usd,
                "usd_per_job": each.cost.total_usd / jobs,
                **asdict(each.cost),
            }
            for each in ranking.kept
        ],
        "dropped": [
            {
                "offer_id": each.offer.id,
                "machine_id": each.offer.machine_id,
                "reason": each.reason,
                "meaning": each.reason.meaning,
                "detail": each.detail,
            }
            for each in ranking.dropped
        ],
    }


def _rendered(data: Mapping[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [_kept(data["kept"])] if data["kept"] else [Text("No offer fits.")]
    if data["dropped"]:
        parts += [Text(), _dropped(data["dropped"])]
    if data["unreadable"]:
        fields = ", ".join(sorted(set(data["unreadable"])))
        parts.append(Text(f"{len(data['unreadable'])} offers could not be read: {fields}."))
    if not data["complete"]:
        parts.append(Text("There are more offers, dearer ones, that were not looked at."))
    return Group(*parts)


def _kept(rows: list[dict[str, Any]]) -> Table:
    """A column for each part of the cost, which add up to the total."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("OFFER", "MACHINE", "GPU", "WHERE", "$/H", "START"):
        table.add_column(heading, no_wrap=True)
    amounts = ("cold_usd", "busy_usd", "idle_usd", "storage_usd", "bandwidth_usd", "risk_usd", "total_usd")
    for name in (*amounts, "usd_per_job"):
        heading = "$ A JOB" if name == "usd_per_job" else name.removesuffix("_usd").upper()
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["offer_id"]),
            str(row["machine_id"]),
            Text(row["gpu"]),
            Text(row["location"] or "-"),
            f"{row['usd_per_hour']:.3f}",
            duration(row["cold_start_s"]),
            *(f"{row[name]:.3f}" for name in amounts),
            f"{row['usd_per_job']:.4f}",
        )
    return table


def _dropped(rows: list[dict[str, Any]]) -> Table:
    """How many for which reason; ``--json`` has each of them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("NOT TAKEN", "REASON", ""):
        table.add_column(heading, no_wrap=True)
    for (reason, meaning), count in Counter((row["reason"], row["meaning"]) for row in rows).most_common():
        table.add_row(str(count), str(reason), Text(meaning))
    return table
