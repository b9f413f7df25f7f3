"""``video-api keys``: API keys of a deployment, through its HTTP API. Each command but ``me`` needs an admin's key."""

from typing import Annotated

import typer

from serve_app.cli import display
from serve_app.cli.duration import span
from serve_app.cli.terminal import Session
from serve_app.client import IssuedKey

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="See `video-api keys list`.", show_default=False)]


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people, e.g. whose it is.", show_default=False)],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="generate, read or admin; may be given again. Default: generate and read."),
    ] = None,
    expires: Annotated[float | None, span("--expires", "How long it is good. Default: until it is revoked.")] = None,
    rate: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    running: Annotated[int | None, typer.Option(help="Jobs that run at a time; others wait.")] = None,
    queued: Annotated[int | None, typer.Option(help="Jobs that wait at a time; others are refused.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(help="Dollars for machines in 24 hours.")] = None,
) -> None:
    """Make a key and print its secret, which nobody can look up later."""
    limits = {
        "requests_per_minute": rate,
        "running_jobs": running,
        "queued_jobs": queued,
        "usd_per_day": usd_per_day,
    }
    with ctx.obj.client() as client:
        made = client.create_key(name, scopes=scopes, limits=limits, expires_in=expires)
    _show(ctx.obj, made)


def list_keys(ctx: typer.Context) -> None:
    """List keys, newest first, with those that were revoked or have expired."""
    with ctx.obj.client() as client:
        found = client.keys()
    ctx.obj.show(found, display.keys(found))


def me(ctx: typer.Context) -> None:
    """Show what the key in use may do, and what it uses of its limits."""
    with ctx.obj.client() as client:
        found = client.own_key()
    ctx.obj.show(found, display.key_use(found))


def revoke(ctx: typer.Context, key_id: KeyId) -> None:
    """Refuse a key from now on. Its jobs go on."""
    with ctx.obj.client() as client:
        revoked = client.revoke_key(key_id)
    ctx.obj.show(revoked, f"key {key_id} ({revoked['name']}) is revoked")


def rotate(
    ctx: typer.Context,
    key_id: KeyId,
    overlap: Annotated[
        float, span("--overlap", "How long the last secret stays good, too; at most 7d. Default: not at all.")
    ] = 0.0,
    expires: Annotated[
        float | None, span("--expires", "How long it is good from now. Left out: it expires when it did.")
    ] = None,
) -> None:
    """Give a key another secret and print it. Its jobs and limits stay."""
    with ctx.obj.client() as client:
        made = client.rotate_key(key_id, overlap_s=overlap, expires_in=expires)
    _show(ctx.obj, made)


def _show(session: Session, made: IssuedKey) -> None:
    """The secret alone on stdout, for a script to take; what it is, beside it."""
    if not session.json:
        session.err.print(display.key(made))
        session.err.print("This is the only time that the secret is shown:")
    session.show(made, made["secret"])
