"""``video-api keys``: API keys of a deployment, through its HTTP API. Each command but ``me`` needs an admin's key."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from serve_app.cli import display
from serve_app.cli.terminal import Session, UsageProblem
from serve_app.client import IssuedKey

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="See `video-api keys list`.", show_default=False)]
Expires = Annotated[
    str, typer.Option("--expires", metavar="30d", help="How long it is good, in s, m, h, d or w.", show_default=False)
]


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="For people, e.g. whose it is.", show_default=False)],
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="generate, read or admin; may be given again. Default: generate and read."),
    ] = None,
    expires: Expires = "",
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
    expires_in = _seconds("--expires", expires) if expires else None
    with ctx.obj.client() as client:
        made = client.create_key(name, scopes=scopes, limits=limits, expires_in=expires_in)
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
        str, typer.Option(metavar="1d", help="How long the last secret stays good, too; at most 7d.")
    ] = "0s",
    expires: Expires = "",
) -> None:
    """Give a key another secret and print it. Its jobs and limits stay."""
    overlap_s = _seconds("--overlap", overlap)
    expires_in = _seconds("--expires", expires) if expires else None
    with ctx.obj.client() as client:
        made = client.rotate_key(key_id, overlap_s=overlap_s, expires_in=expires_in)
    _show(ctx.obj, made)


def _show(session: Session, made: IssuedKey) -> None:
    """The secret alone on stdout, for a script to take; what it is, beside it."""
    if not session.json:
        session.err.print(display.key(made))
        session.err.print("This is the only time that the secret is shown:")
    session.show(made, made["secret"])


def _seconds(option: str, text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise UsageProblem(f"{option} {text}: a number and s, m, h, d or w, as in 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}).total_seconds()
