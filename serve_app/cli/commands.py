"""The ``video-api`` command. Talks to the public HTTP API of any deployment; ``up`` and ``demo`` run one here.

Quick to start: nothing of the service is imported before a command needs it.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from dotenv import dotenv_values
from typer.core import TyperGroup

from serve_app.cli import costs, display, doctor, head, keys, node, node_access, nodes, offers, webhooks, weights
from serve_app.cli.place import Place
from serve_app.cli.progress import showing_bytes, showing_job
from serve_app.cli.submission import InvalidArguments, request_video
from serve_app.cli.terminal import Code, CommandFailed, Session, UsageProblem, consoles, sentence
from serve_app.client import ApiError, Client, Created, Job, Unreachable, WaitTimedOut

EXIT_CODES = """\
[bold]Exit codes[/]

0 ok · 1 the job failed · 2 usage or configuration · 3 API unreachable, down or broken (5xx)

4 API refused the request (4xx) · 5 the job was cancelled · 124 wait timed out · 130 interrupted"""

_ENDINGS = {"completed": Code.OK, "failed": Code.JOB_FAILED, "cancelled": Code.JOB_CANCELLED}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Interrupted(Exception):
    """Ctrl-C while a job was waited for."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


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
            raise _failed(str(error), Code.UNREACHABLE) from None
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
        except Interrupted as interrupted:
            # A job is not the command that asked for it.
            job_id = interrupted.job_id
            raise _failed(f"interrupted; job {job_id} goes on: video-api wait {job_id}", Code.INTERRUPTED) from None
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
) -> None:
    """Make videos: submit jobs, watch them, fetch the results; or run the whole service on this machine.

    --url, --key and --json may stand behind the command, too. What the environment does not set is read from `.env`.
    """
    found = {name: value for name, value in dotenv_values(".env").items() if value} | dict(os.environ)
    url = url or found.get("VIDEO_API_URL") or f"http://127.0.0.1:{found.get('PORT') or 8000}"
    out, err = consoles()
    ctx.obj = Session(url=url, key=key or _key_for(url, found), json=as_json, out=out, err=err)


def _key_for(url: str, found: Mapping[str, str]) -> str:
    key = found.get("VIDEO_API_KEY") or found.get("API_KEY")
    if key or urlsplit(url).hostname not in _LOOPBACK:
        return key or ""
    try:
        secrets = json.loads((Path(found.get("VIDEO_API_DATA_DIR") or ".data") / "secrets.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(secrets.get("api_key", ""))


# -------------------------------------------------------------------- jobs

JobId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
_PLACE = "a file, or a folder (there already, or ending in /) for ID.mp4"
_OUTPUT = ("--output", "-o")
Poll = Annotated[
    float, typer.Option("--poll", min=0, help="Seconds between two questions, where the service tells no events.")
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="NAME=VALUE", help="A pair of your own; may be repeated.", show_default=False),
]
WaitForIt = Annotated[bool, typer.Option("--wait", help="Wait for the end. Implied by -o.")]
Output = Annotated[
    str, typer.Option(*_OUTPUT, metavar="PATH", help=f"Save the video there: {_PLACE}.", show_default=False)
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Stop waiting after so many seconds; the job goes on.", show_default=False),
]


@app.command()
def submit(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="See `video-api models`.", show_default=False)],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Inputs: a file or URL. Parameters: a value.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="Leave an optional input out; may be repeated.", show_default=False),
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Told when the job has ended.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Your user; users share the GPUs fairly.")] = None,
    priority: Annotated[int | None, typer.Option(help="-10 to 10; higher runs first.")] = None,
    expires_after: Annotated[float | None, typer.Option(help="Seconds in which it has to start.")] = None,
    run_timeout: Annotated[float | None, typer.Option(help="Seconds that a run may take.")] = None,
    metadata: Metadata = None,
    wait_for_it: WaitForIt = False,
    output: Output = "",
    timeout: Timeout = None,
    poll: Poll = 1.0,
) -> None:
    """Ask for a video, e.g. [bold]submit MODEL image=cat.jpg prompt="A cat yawns" duration=3 -o cat.mp4[/]

    Files are uploaded; what is not given has the model's default.
    """
    options = {
        "webhook_url": webhook_url,
        "user_id": user_id,
        "priority": priority,
        "expires_after": expires_after,
        "timeout_s": run_timeout,
        "metadata": _pairs(metadata or []) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    current: Session = ctx.obj
    place = Place.parse(output) if output else None
    with current.client() as client:
        with showing_bytes(current.err, "uploading") as on_bytes:
            created = request_video(client, model, _pairs(values or []), without or [], given, on_bytes)
        _go_on(current, client, created, wait_for_it, place, poll, timeout)


@app.command()
def retry(
    ctx: typer.Context,
    job_id: JobId,
    wait_for_it: WaitForIt = False,
    output: Output = "",
    timeout: Timeout = None,
    poll: Poll = 1.0,
) -> None:
    """Ask again for what a failed or cancelled job was to make, as a new job."""
    current: Session = ctx.obj
    place = Place.parse(output) if output else None
    with current.client() as client:
        _go_on(current, client, client.retry(job_id), wait_for_it, place, poll, timeout)


@app.command()
def status(ctx: typer.Context, job_id: JobId) -> None:
    """Show a job."""
    with ctx.obj.client() as client:
        job = client.job(job_id)
    ctx.obj.show(job, display.job(job))


@app.command()
def wait(ctx: typer.Context, job_id: JobId, timeout: Timeout = None, poll: Poll = 1.0) -> None:
    """Watch a job until it has ended. The exit code says how."""
    with ctx.obj.client() as client:
        job = _follow(ctx.obj, client, job_id, poll, timeout)
    ctx.obj.show(job, display.job(job))


@app.command()
def download(
    ctx: typer.Context,
    job_id: JobId,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="PATH", help=f"Where to: {_PLACE}. Default: ./ID.mp4", show_default=False
        ),
    ] = "./",
    poster: Annotated[bool, typer.Option("--poster", help="The first frame instead, a WebP: ID.webp.")] = False,
) -> None:
    """Save the finished video, or its first frame."""
    place = Place.parse(output)
    with ctx.obj.client() as client:
        if poster:
            job = client.job(job_id)
            path = place.file(job_id, "webp")
            client.download_poster(job, path)
        else:
            path = _save(ctx.obj, client, job_id, place)
    ctx.obj.show({"job_id": job_id, "path": str(path), "bytes": path.stat().st_size}, str(path))


@app.command()
def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """Cancel a job. One that is running stops at its next step; one that has ended stays as it is."""
    with ctx.obj.client() as client:
        job = client.cancel(job_id)
    ctx.obj.show(job, display.job(job))


@app.command()
def delete(ctx: typer.Context, job_id: JobId) -> None:
    """Delete a job that has ended, and its media."""
    with ctx.obj.client() as client:
        client.delete(job_id)
    ctx.obj.show({"job_id": job_id, "deleted": True}, f"job {job_id} is deleted")


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    only_status: Annotated[str | None, typer.Option("--status", help="E.g. queued or failed.")] = None,
    model: Annotated[str | None, typer.Option()] = None,
    user_id: Annotated[str | None, typer.Option("--user")] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """List jobs, newest first."""
    with ctx.obj.client() as client:
        wanted = _pairs(metadata or [])
        page = client.jobs(status=only_status, model=model, user_id=user_id, metadata=wanted, limit=limit)
    ctx.obj.show(page, display.jobs(page["data"]))


# -------------------------------------------------------------------- the service


@app.command()
def models(ctx: typer.Context) -> None:
    """List the models, their inputs and their parameters."""
    with ctx.obj.client() as client:
        found = client.models()
    ctx.obj.show(found, display.models(found))


@app.command()
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
app.add_typer(key_commands, name="keys")

# -------------------------------------------------------------------- this machine

Config = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Serve YAML.")]
LOCAL = Path("configs/local.yaml")


@app.command()
def up(ctx: typer.Context, config: Config = LOCAL) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    from serve_app.cli import stack

    stack.up(ctx.obj, config)


@app.command()
def demo(
    ctx: typer.Context,
    config: Config = LOCAL,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the videos.")] = Path("out"),
) -> None:
    """Run the service, make a video with every model as a client would, save them, stop the service."""
    from serve_app.cli import stack

    raise typer.Exit(stack.demo(ctx.obj, config, out))


@app.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL to the newest version."""
    from serve_app.cli import stack

    stack.migrate_database()


# -------------------------------------------------------------------- a cluster

app.command()(head.head)
app.command()(nodes.nodes)
app.command()(doctor.doctor)
app.command()(offers.offers)
app.command()(costs.costs)
node_commands = typer.Typer(no_args_is_help=True, help="Invite, join and revoke GPU nodes.")
for command in (node.join, node_access.token, node_access.revoke):
    node_commands.command()(command)
app.add_typer(node_commands, name="node")
weights_commands = typer.Typer(no_args_is_help=True, help="Keep weights in the bucket, for GPU nodes to fetch.")
weights_commands.command()(weights.mirror)
weights_commands.command("list")(weights.list_mirrors)
weights_commands.command()(weights.link)
app.add_typer(weights_commands, name="weights")
app.add_typer(webhooks.commands, name="webhooks")


def _pairs(values: list[str]) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise UsageProblem(f"{value!r} is not NAME=VALUE")
        if name in pairs:
            raise UsageProblem(f"{name} is given twice: {pairs[name]} and {text}")
        pairs[name] = text
    return pairs


def _go_on(
    current: Session,
    client: Client,
    created: Created,
    wait_for_it: bool,
    place: Place | None,
    poll_s: float,
    timeout_s: float | None,
) -> None:
    """What a command does with the job that it has asked for."""
    job_id = created["job_id"]
    if not wait_for_it and place is None:
        current.show(created, job_id)
        return
    current.err.print(f"job {job_id}", soft_wrap=True)
    job = _follow(current, client, job_id, poll_s, timeout_s)
    path = place and _save(current, client, job_id, place)
    current.show(job, str(path) if path else display.job(job))


def _follow(current: Session, client: Client, job_id: str, poll_s: float, timeout_s: float | None) -> Job:
    """The job when it has completed. Otherwise the command ends here, with the exit code that says why."""
    try:
        with showing_job(current.err) as on_change:
            job = client.wait(job_id, on_change, poll_s, timeout_s)
    except KeyboardInterrupt:
        raise Interrupted(job_id) from None
    code = _ENDINGS[job["status"]]
    if code is Code.OK:
        return job
    if current.json:
        current.show(job, None)
    reason = f": {job.get('error_code')}: {job.get('error_message')}" if code is Code.JOB_FAILED else ""
    raise _failed(f"job {job_id} {'was ' if code is Code.JOB_CANCELLED else ''}{job['status']}{reason}", code)


def _save(current: Session, client: Client, job_id: str, place: Place) -> Path:
    path = place.file(job_id)
    with showing_bytes(current.err, f"downloading {path.name}") as on_bytes:
        client.download(job_id, path, on_bytes)
    return path
