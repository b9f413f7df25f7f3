"""The ``video-api`` command. Talks to the public HTTP API of any deployment; ``up`` and ``demo`` run one here.

Quick to start: nothing of the service is imported before a command needs it.
"""

import os
import sys
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from serve_app import __version__
from serve_app.cli import (
    costs,
    display,
    doctor,
    head,
    jobs,
    keys,
    machine,
    node,
    node_access,
    nodes,
    offers,
    webhooks,
    weights,
)
from serve_app.cli.address import address
from serve_app.cli.extras import needing
from serve_app.cli.submission import InvalidArguments
from serve_app.cli.terminal import Code, CommandFailed, Session, UsageProblem, consoles, sentence
from serve_app.client import ApiError, Unreachable, WaitTimedOut

EXIT_CODES = """\
[bold]Exit codes[/]

0 ok · 1 the job failed · 2 usage or configuration · 3 API unreachable, down or broken (5xx)

4 API refused the request (4xx) · 5 the job was cancelled · 124 wait timed out · 130 interrupted"""

#: Under what `--help` shows commands.
_JOBS, _KEYS, _MACHINE, _CLUSTER = "Jobs", "Keys and webhooks", "This machine", "A cluster"


class Commands(TyperGroup):
    """Global options are understood behind the command too, and every error ends in its exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        front: list[str] = []
        rest: list[str] = []
        waiting = list(args)
        while waiting and waiting[0] != "--":
            word = waiting.pop(0)
            if word in ("--url", "--key"):
                front += [word, *waiting[:1]]
                del waiting[:1]
            elif word == "--json" or word.startswith(("--url=", "--key=")):
                front.append(word)
            else:
                rest.append(word)
        return super().parse_args(ctx, front + rest + waiting)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ApiError as error:
            message = f"{error.code}: {error.message}"
            if error.status == 401:
                message = f"{sentence(message)} Give --key or set VIDEO_API_KEY."
            elif error.code == "forbidden":
                message = (
                    f"{sentence(message)} Give another with --key or VIDEO_API_KEY; `video-api keys create` makes one."
                )
            raise _failed(message, Code.UNREACHABLE if error.status >= 500 else Code.REFUSED) from None
        except Unreachable as error:
            where = "VIDEO_API_URL (or --url) says where it is."
            raise _failed(f"{error} {where}", Code.UNREACHABLE) from None
        except CommandFailed as error:
            raise _failed(str(error), error.code) from None
        except WaitTimedOut as error:
            raise _failed(str(error), Code.WAIT_TIMED_OUT) from None
        except BrokenPipeError:
            # Whoever read our output has enough of it. Python would write what is left at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Code.OK) from None
        except (InvalidArguments, UsageProblem, OSError) as error:
            raise _failed(str(error), Code.USAGE) from None
        except KeyboardInterrupt:
            raise _failed("interrupted; a job that was submitted goes on", Code.INTERRUPTED) from None


app = typer.Typer(
    cls=Commands, epilog=EXIT_CODES, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
)


def main() -> None:
    """Entry point of the ``video-api`` script."""
    app()


def _failed(message: str, code: Code) -> typer.Exit:
    _, err = consoles()
    err.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(code)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"video-api {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def session(
    ctx: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="VIDEO_API_URL", help="Where the API is. Default: this machine.", show_default=False)
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            envvar="VIDEO_API_KEY",
            show_envvar=True,
            help="API key. Default: API_KEY, or on this machine the key that `up` invented.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else there.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make videos: submit jobs, watch them, fetch the results; or run the whole service on this machine.

    --url, --key and --json may stand behind the command, too. What the environment does not set is read from `.env`.
    """
    out, err = consoles()
    ctx.obj = Session(address=partial(address, url, key), json=as_json, out=out, err=err)


# -------------------------------------------------------------------- jobs

app.command(rich_help_panel=_JOBS)(jobs.submit)
app.command(rich_help_panel=_JOBS)(jobs.retry)
app.command(rich_help_panel=_JOBS)(jobs.status)
app.command(rich_help_panel=_JOBS)(jobs.wait)
app.command(rich_help_panel=_JOBS)(jobs.download)
app.command(rich_help_panel=_JOBS)(jobs.cancel)
app.command(rich_help_panel=_JOBS)(jobs.delete)
app.command("list", rich_help_panel=_JOBS)(jobs.list_jobs)

# -------------------------------------------------------------------- the service


@app.command(rich_help_panel=_JOBS)
def models(ctx: typer.Context) -> None:
    """List the models, their inputs and their parameters."""
    with ctx.obj.client() as client:
        found = client.models()
    ctx.obj.show(found, display.models(found))


@app.command(rich_help_panel=_JOBS)
def health(ctx: typer.Context) -> None:
    """Show whether every part of the service works, and how many jobs there are. Exit code 3 when one is down."""
    with ctx.obj.client() as client:
        found = client.health()
    ctx.obj.show(found, display.health(found))
    # A model that does not start is among the details, too, but makes no part down.
    if "down" in (found.get(part) for part in ("api", "database", "storage", "ray", "redis")):
        raise typer.Exit(Code.UNREACHABLE)


key_commands = typer.Typer(no_args_is_help=True, help="Make, list, revoke and rotate API keys, and look at one's own.")
key_commands.command()(keys.create)
key_commands.command("list")(keys.list_keys)
key_commands.command()(keys.me)
key_commands.command()(keys.revoke)
key_commands.command()(keys.rotate)
app.add_typer(key_commands, name="keys", rich_help_panel=_KEYS)

# -------------------------------------------------------------------- this machine

app.command(cls=needing("local"), rich_help_panel=_MACHINE)(machine.up)
app.command(cls=needing("demo"), rich_help_panel=_MACHINE)(machine.demo)
app.command(cls=needing("head"), rich_help_panel=_MACHINE)(machine.migrate)

# -------------------------------------------------------------------- a cluster

app.command(cls=needing("head"), rich_help_panel=_CLUSTER)(head.head)
app.command(cls=needing("head"), rich_help_panel=_CLUSTER)(nodes.nodes)
app.command(cls=needing("head"), rich_help_panel=_CLUSTER)(doctor.doctor)
app.command(cls=needing("head"), rich_help_panel=_CLUSTER)(offers.offers)
app.command(cls=needing("head"), rich_help_panel=_CLUSTER)(costs.costs)
node_commands = typer.Typer(no_args_is_help=True, help="Invite, join and revoke GPU nodes.")
node_commands.command(cls=needing("gpu"))(node.join)
node_commands.command(cls=needing("head"))(node_access.token)
node_commands.command(cls=needing("head"))(node_access.revoke)
app.add_typer(node_commands, name="node", rich_help_panel=_CLUSTER)
weights_commands = typer.Typer(no_args_is_help=True, help="Keep weights in the bucket, for GPU nodes to fetch.")
weights_commands.command(cls=needing("head"))(weights.mirror)
weights_commands.command("list", cls=needing("head"))(weights.list_mirrors)
weights_commands.command(cls=needing("head"))(weights.link)
app.add_typer(weights_commands, name="weights", rich_help_panel=_CLUSTER)
app.add_typer(webhooks.commands, name="webhooks", rich_help_panel=_KEYS)
