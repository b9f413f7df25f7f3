"""The commands about jobs: asking for videos, watching them, fetching the results."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from serve_app.cli import completion, display, live
from serve_app.cli.duration import span
from serve_app.cli.opener import Open, opener
from serve_app.cli.place import Place
from serve_app.cli.progress import showing_bytes, showing_job
from serve_app.cli.submission import request_video
from serve_app.cli.terminal import Code, CommandFailed, Session, UsageProblem
from serve_app.client import ENDED, Client, Created, Job

_ENDINGS = {"completed": Code.OK, "failed": Code.JOB_FAILED, "cancelled": Code.JOB_CANCELLED}
_GOING = ("uploading", "queued", "processing")


def _job_id(*statuses: str) -> Any:
    """One that has one of these statuses, where a shell asks for what there is."""
    return typer.Argument(metavar="ID", show_default=False, autocompletion=completion.jobs(*statuses))


_PLACE = "a file, or a folder (there already, or ending in /) for ID.mp4"
_OUTPUT = ("--output", "-o")
#: Seconds. Less would be questions without a pause.
_MIN_POLL_S = 0.1
Poll = Annotated[
    float,
    typer.Option("--poll", min=_MIN_POLL_S, help="Seconds between two questions, where the service tells no events."),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="NAME=VALUE", help="A pair of your own; may be repeated.", show_default=False),
]
WaitForIt = Annotated[bool, typer.Option("--wait", help="Wait for the end. Implied by -o and --open.")]
OpenIt = Annotated[
    bool, typer.Option("--open", help="Show the video when it is done: the file of -o, or else its link.")
]
Output = Annotated[
    str, typer.Option(*_OUTPUT, metavar="PATH", help=f"Save the video there: {_PLACE}.", show_default=False)
]
Timeout = Annotated[float | None, span("--timeout", "Stop waiting after so long; the job goes on.", bare="s")]


def submit(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="See `video-api models`.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Inputs: a file, a URL, - for what is piped in, or job:ID for that job's video. Parameters: a value.",
            show_default=False,
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="Leave an optional input out; may be repeated.", show_default=False),
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Told when the job has ended.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Your user; users share the GPUs fairly.")] = None,
    priority: Annotated[int | None, typer.Option(help="-10 to 10; higher runs first.")] = None,
    expires_after: Annotated[float | None, span("--expires-after", "In which time it has to start.", bare="s")] = None,
    run_timeout: Annotated[float | None, span("--run-timeout", "How long a run may take.", bare="s")] = None,
    metadata: Metadata = None,
    wait_for_it: WaitForIt = False,
    output: Output = "",
    open_it: OpenIt = False,
    timeout: Timeout = None,
    poll: Poll = 1.0,
) -> None:
    """Ask for a video, e.g. [bold]submit MODEL image=cat.jpg prompt="A cat yawns" duration=3 -o cat.mp4[/]

    Files are uploaded; what is not given has the model's default. One file may be piped in: [bold]image=-[/]
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
    end = _End.parse(output, open_it)
    with current.client() as client:
        with showing_bytes(current.err, "uploading") as on_bytes:
            created = request_video(client, model, _pairs(values or []), without or [], given, on_bytes)
        _go_on(current, client, created, wait_for_it, end, poll, timeout)


def retry(
    ctx: typer.Context,
    job_id: Annotated[str, _job_id("failed", "cancelled")],
    wait_for_it: WaitForIt = False,
    output: Output = "",
    open_it: OpenIt = False,
    timeout: Timeout = None,
    poll: Poll = 1.0,
) -> None:
    """Ask again for what a failed or cancelled job was to make, as a new job."""
    current: Session = ctx.obj
    end = _End.parse(output, open_it)
    with current.client() as client:
        _go_on(current, client, client.retry(job_id), wait_for_it, end, poll, timeout)


def status(ctx: typer.Context, job_id: Annotated[str, _job_id()]) -> None:
    """Show a job."""
    with ctx.obj.client() as client:
        job = client.job(job_id)
    ctx.obj.show(job, display.job(job))


def wait(
    ctx: typer.Context, job_id: Annotated[str, _job_id(*_GOING)], timeout: Timeout = None, poll: Poll = 1.0
) -> None:
    """Watch a job until it has ended. The exit code says how."""
    with ctx.obj.client() as client:
        job = _follow(ctx.obj, client, job_id, poll, timeout)
    ctx.obj.show(job, display.job(job))


def download(
    ctx: typer.Context,
    job_id: Annotated[str, _job_id("completed")],
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


def cancel(ctx: typer.Context, job_id: Annotated[str, _job_id(*_GOING)]) -> None:
    """Cancel a job. One that is running stops at its next step; one that has ended stays as it is."""
    with ctx.obj.client() as client:
        job = client.cancel(job_id)
    ctx.obj.show(job, display.job(job))


def delete(ctx: typer.Context, job_id: Annotated[str, _job_id(*ENDED)]) -> None:
    """Delete a job that is not running, and its media."""
    with ctx.obj.client() as client:
        client.delete(job_id)
    ctx.obj.show({"job_id": job_id, "deleted": True}, f"job {job_id} is deleted")


def list_jobs(
    ctx: typer.Context,
    only_status: Annotated[str | None, typer.Option("--status", help="E.g. queued or failed.")] = None,
    model: Annotated[str | None, typer.Option(autocompletion=completion.models)] = None,
    user_id: Annotated[str | None, typer.Option(help="Only of this user of yours.")] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing them, and what is new, until Ctrl-C.")] = False,
    poll: Annotated[float, typer.Option(min=_MIN_POLL_S, help="Seconds between two looks of --watch.")] = 2.0,
) -> None:
    """List the newest jobs; or watch them as they go: a new one comes on top, one that has begun is seen to its end
    though newer ones push it out, as long as it is among the newest 100."""
    current: Session = ctx.obj
    wanted = _pairs(metadata or [])
    with current.client() as client:
        ask = partial(client.jobs, status=only_status, model=model, user_id=user_id, metadata=wanted)
        if not watch:
            page = ask(limit=limit)
            current.show(page, display.jobs(page["data"]))
            return
        try:
            with live.showing_jobs(current) as show:
                live.follow(live.Newest(lambda newest: ask(limit=newest)["data"], limit), show, poll)
        except KeyboardInterrupt:
            # The only end that there is, so nothing to complain of.
            raise typer.Exit(Code.INTERRUPTED) from None


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


@dataclass(frozen=True)
class _End:
    """What is to be done with a video when it is there. Both are looked at before a job is asked for."""

    place: Place | None
    open: Open | None

    @classmethod
    def parse(cls, output: str, open_it: bool) -> Self:
        """Raises UsageProblem."""
        return cls(Place.parse(output) if output else None, opener() if open_it else None)


def _go_on(
    current: Session,
    client: Client,
    created: Created,
    wait_for_it: bool,
    end: _End,
    poll_s: float,
    timeout_s: float | None,
) -> None:
    """What a command does with the job that it has asked for."""
    job_id = created["job_id"]
    if not (wait_for_it or end.place or end.open):
        current.show(created, job_id)
        return
    current.err.print(f"job {job_id}", soft_wrap=True)
    job = _follow(current, client, job_id, poll_s, timeout_s)
    path = end.place and _save(current, client, job_id, end.place)
    current.show(job, str(path) if path else display.job(job))
    if end.open is not None and (fault := end.open(path or job["result_url"])):
        # The job is done all the same.
        shown = path.absolute() if path else "the link"
        current.err.print(f"could not open {shown}: {fault}", style="yellow", markup=False, soft_wrap=True)


def _follow(current: Session, client: Client, job_id: str, poll_s: float, timeout_s: float | None) -> Job:
    """The job when it has completed. Otherwise the command ends here, with the exit code that says why."""
    try:
        with showing_job(current.err) as on_change:
            job = client.wait(job_id, on_change, poll_s, timeout_s)
    except KeyboardInterrupt:
        # A job is not the command that asked for it.
        message = f"interrupted; job {job_id} goes on: video-api wait {job_id}"
        raise CommandFailed(message, Code.INTERRUPTED) from None
    code = _ENDINGS[job["status"]]
    if code is Code.OK:
        return job
    if current.json:
        current.show(job, None)
    reason = f": {job.get('error_code')}: {job.get('error_message')}" if code is Code.JOB_FAILED else ""
    verb = "was " if code is Code.JOB_CANCELLED else ""
    raise CommandFailed(f"job {job_id} {verb}{job['status']}{reason}", code)


def _save(current: Session, client: Client, job_id: str, place: Place) -> Path:
    path = place.file(job_id)
    with showing_bytes(current.err, f"downloading {path.name}") as on_bytes:
        client.download(job_id, path, on_bytes)
    return path
