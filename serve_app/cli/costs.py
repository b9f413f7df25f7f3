"""``video-api costs``: what machines have cost and what came of it, for the operator, beside a running head."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.cli.duration import span
from serve_app.cli.node_access import settings_beside_head
from serve_app.cli.terminal import UsageProblem

if TYPE_CHECKING:
    from serve_app.cli.bill import Bill, By, Done, Line, Spent

_WEEK_S = 7 * 86400.0


def costs(
    ctx: typer.Context,
    since: Annotated[float, span("--since", "How far back. Default: 7d.")] = _WEEK_S,
    by: Annotated[str, typer.Option(help="model, node or day (UTC).")] = "model",
) -> None:
    """Show what rented machines have cost, what a video costs, and how much of the time they worked.
    In the head's shell."""
    from serve_app.cli.bill import bill

    begin = datetime.now(UTC) - timedelta(seconds=since)
    if by not in ("model", "node", "day"):
        raise UsageProblem(f"--by {by}: there are model, node and day")
    kind: By = by  # type: ignore[assignment]
    spent, done = asyncio.run(_read(begin))
    found = bill(spent, done, kind)
    data = _data(found, kind, begin)
    ctx.obj.show(data, _rendered(data))


async def _read(begin: datetime) -> "tuple[Sequence[Spent], Sequence[Done]]":
    from sqlalchemy.exc import OperationalError, ProgrammingError
    from sqlalchemy.ext.asyncio import create_async_engine

    from serve_app.cli.bill import read

    engine = create_async_engine(settings_beside_head().database_url)
    try:
        return await read(engine, begin)
    except OperationalError as error:
        raise UsageProblem(f"DATABASE_URL: {error.orig}") from None
    except ProgrammingError as error:
        raise UsageProblem(
            f"DATABASE_URL: {error.orig} Is it the head's own, and has this version run on it?"
        ) from None
    finally:
        await engine.dispose()


def _data(found: "Bill", by: "By", begin: datetime) -> dict[str, Any]:
    return {
        "since": begin.isoformat(),
        "by": by,
        "lines": [{by: name, **_figures(line)} for name, line in found.lines.items()],
        "total": {**_figures(found.total), "unattributed_usd": found.unattributed_usd},
    }


def _figures(line: "Line") -> dict[str, Any]:
    return {
        "jobs": len(line.jobs),
        "videos": line.videos,
        "usd": line.usd,
        "usd_per_video": line.usd_per_video,
        "busy_s": line.busy_s,
        "rented_s": line.rented_s,
        "utilisation": line.utilisation,
        "cold_start_share": line.start_share,
    }


def _rendered(data: Mapping[str, Any]) -> RenderableType:
    if not data["lines"] and not data["total"]["usd"]:
        return Text("Nothing was rented in that time.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(data["by"].upper(), no_wrap=True)
    for heading in ("JOBS", "VIDEOS", "$", "$ A VIDEO", "BUSY", "COLD START"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*data["lines"], {data["by"]: "all", **data["total"]}):
        table.add_row(
            Text(row[data["by"]] or "-"),
            str(row["jobs"]),
            str(row["videos"]),
            _usd(row["usd"], 2),
            _usd(row["usd_per_video"], 4),
            _percent(row["utilisation"]),
            _percent(row["cold_start_share"]),
        )
    lost = data["total"]["unattributed_usd"]
    return Group(table, Text(f"Of that, ${lost:.2f} is for machines on which no job has run in that time."))


def _usd(amount: float | None, digits: int) -> str:
    return "-" if amount is None else f"{amount:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
