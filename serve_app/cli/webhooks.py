"""``video-api webhooks …``: where the key's jobs are told, and what was answered there."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.cli.display import moment
from serve_app.cli.duration import span
from serve_app.cli.terminal import UsageProblem
from serve_app.client import Attempt, Delivery, Webhook

_COLOURS = {"delivered": "green", "failed": "red", "pending": "yellow", "sending": "cyan"}
#: Characters of an answer or an error that a line shows.
_BRIEF = 100

commands = typer.Typer(no_args_is_help=True, help="Have URLs told of your jobs, and see what they answered.")

EndpointId = Annotated[str, typer.Argument(metavar="ID", help="whe_…", show_default=False)]
_EVENTS = "job.started, job.completed, job.failed or job.cancelled; may be repeated."


@commands.command("list")
def list_webhooks(ctx: typer.Context, limit: Annotated[int, typer.Option(min=1)] = 100) -> None:
    """List webhook endpoints, newest first."""
    with ctx.obj.client() as client:
        found = client.webhooks(limit)
    ctx.obj.show(found, _endpoints(found))


@commands.command()
def create(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", show_default=False)],
    events: Annotated[
        list[str] | None, typer.Option("--event", help=f"{_EVENTS} Default: the three ends.", show_default=False)
    ] = None,
) -> None:
    """Have a URL told of the events of this key's jobs. Shows the secret that they are signed with."""
    with ctx.obj.client() as client:
        made = client.create_webhook(url, events)
    ctx.obj.show(made, _endpoint(made))


@commands.command()
def show(ctx: typer.Context, webhook_id: EndpointId) -> None:
    """Show a webhook endpoint with its secret."""
    with ctx.obj.client() as client:
        found = client.webhook(webhook_id)
    ctx.obj.show(found, _endpoint(found))


@commands.command()
def change(
    ctx: typer.Context,
    webhook_id: EndpointId,
    # `--url` is where the API is.
    to: Annotated[str | None, typer.Option(metavar="URL", help="Where to from now on.", show_default=False)] = None,
    events: Annotated[
        list[str] | None,
        typer.Option("--event", help=f"{_EVENTS} Replaces all. Left out: as they are.", show_default=False),
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Again, after a 410; or no more.", show_default=False)
    ] = None,
) -> None:
    """Change a webhook endpoint; what is not given stays."""
    if to is None and not events and enabled is None:
        raise UsageProblem("nothing to change: give --to, --event, --enable or --disable")
    with ctx.obj.client() as client:
        changed = client.change_webhook(webhook_id, url=to, events=events or None, enabled=enabled)
    ctx.obj.show(changed, _endpoint(changed))


@commands.command()
def rotate(
    ctx: typer.Context,
    webhook_id: EndpointId,
    overlap: Annotated[
        float | None,
        span("--overlap", "How long the last secret stays good, too; at most 7d. Default: 1d.", bare="s"),
    ] = None,
) -> None:
    """Make a new secret."""
    with ctx.obj.client() as client:
        rotated = client.rotate_webhook(webhook_id, None if overlap is None else round(overlap))
    ctx.obj.show(rotated, _endpoint(rotated))


@commands.command()
def delete(ctx: typer.Context, webhook_id: EndpointId) -> None:
    """Delete a webhook endpoint, and the log of what was sent to it."""
    with ctx.obj.client() as client:
        client.delete_webhook(webhook_id)
    ctx.obj.show({"id": webhook_id, "deleted": True}, f"webhook {webhook_id} is deleted")


@commands.command()
def test(ctx: typer.Context, webhook_id: EndpointId) -> None:
    """Send a webhook endpoint a test event. `deliveries` tells what came of it."""
    with ctx.obj.client() as client:
        sent = client.test_webhook(webhook_id)
    ctx.obj.show(sent, sent["id"])


@commands.command()
def deliveries(
    ctx: typer.Context,
    job_id: Annotated[str | None, typer.Option("--job", metavar="ID", show_default=False)] = None,
    webhook_id: Annotated[str | None, typer.Option("--webhook", metavar="ID", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Show what was sent, newest first, and what was answered to each attempt."""
    with ctx.obj.client() as client:
        found = client.deliveries(job_id=job_id, webhook_id=webhook_id, limit=limit)
    ctx.obj.show(found, _deliveries(found))


@commands.command()
def redeliver(
    ctx: typer.Context, delivery_id: Annotated[str, typer.Argument(metavar="ID", help="msg_…", show_default=False)]
) -> None:
    """Send a delivery again."""
    with ctx.obj.client() as client:
        again = client.redeliver(delivery_id)
    ctx.obj.show(again, f"{again['id']} is {again['state']}")


@commands.command()
def secret(ctx: typer.Context) -> None:
    """Show the secret that the `webhook_url` of this key's jobs is signed with."""
    with ctx.obj.client() as client:
        found = client.webhook_secret()
    ctx.obj.show({"secret": found}, found)


def _endpoint(found: Webhook) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in found.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif name.endswith(("_at", "_until")):
            value = moment(str(value))
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        grid.add_row(name, Text(str(value)))
    return grid


def _endpoints(found: Sequence[Webhook]) -> RenderableType:
    table = _table("WEBHOOK", "STATE", "EVENTS", "URL")
    for each in found:
        state = Text("enabled", style="green") if each["enabled"] else Text("disabled", style="red")
        events = " ".join(event.removeprefix("job.") for event in each["events"])
        table.add_row(each["id"], state, events, Text(each["url"]))
    return table


def _deliveries(found: Sequence[Delivery]) -> RenderableType:
    """A line for each, and below it one for each attempt."""
    lines = []
    for each in found:
        words = [each["id"], each["state"], each["event"], each.get("job_id", "-"), each["url"]]
        lines.append(Text("  ".join(words), style=_COLOURS.get(each["state"], "")))
        lines += map(_attempt, each["attempts"])
    return Group(*lines)


def _attempt(attempt: Attempt) -> Text:
    # A stranger's words: none of them may be an order to the terminal.
    said = "".join(letter if letter.isprintable() else " " for letter in attempt.get("error") or attempt["answer"])
    facts = [str(attempt["n"]), moment(attempt["at"]), str(attempt.get("status", "-")), f"{attempt['took_ms']} ms"]
    return Text("  " + "  ".join([*facts, said[:_BRIEF]]).rstrip())


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
