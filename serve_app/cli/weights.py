"""``video-api weights``: checkpoints into the bucket once, and links for nodes to read them by."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dotenv import load_dotenv
from rich.table import Table

from serve_app.cli.display import moment, size
from serve_app.cli.duration import span
from serve_app.cli.progress import showing_steps
from serve_app.cli.terminal import Code, Session, UsageProblem, sentence

if TYPE_CHECKING:
    from serve_app.settings import Settings
    from serve_app.weights.mirrors import Copied, Mirror, Mirrors
    from serve_app.weights.source import Source

_REPOSITORY = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>\S+))?", re.ASCII)
_HOUR_S, _DAY_S = 3600.0, 86400.0
#: So long S3 lets a link live at most.
_MOST_S = 7 * _DAY_S


def mirror(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="OWNER/NAME or OWNER/NAME@REVISION of the model hub, a folder or a file.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Option(help="What to call it, e.g. ltx2. Default: as it is called there.", show_default=False)
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only files whose path fits; * takes / along.", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="No files whose path fits.", show_default=False)
    ] = None,
) -> None:
    """Copy a checkpoint into the bucket, for nodes to fetch from there: they need neither its keys nor HF_TOKEN.

    Reads R2_ENDPOINT and the like, as the service does, and HF_TOKEN if the repository wants one.

    No more than one file at a time is on the disk. The same command again goes on where it stopped.
    """
    session: Session = ctx.obj
    try:
        with _explained():
            called, copied = _copy(session, source, name, include or [], exclude or [])
    except KeyboardInterrupt:
        session.err.print("interrupted; the same command goes on from here", style="red")
        raise typer.Exit(Code.INTERRUPTED) from None
    manifest = copied.manifest
    row = {
        "name": called,
        "source": manifest.source,
        "revision": manifest.revision,
        "files": len(manifest.files),
        "bytes": manifest.total_bytes,
        "new_files": copied.new_files,
        "new_bytes": copied.new_bytes,
    }
    origin = _origin(manifest.source, manifest.revision)
    whole = f"{len(manifest.files)} files, {size(manifest.total_bytes)}"
    session.show(row, f"{called}: {origin}, {whole}; copied now: {copied.new_files} files, {size(copied.new_bytes)}")


def list_mirrors(ctx: typer.Context) -> None:
    """List the mirrored checkpoints."""
    with _explained():
        found = [_row(each) for each in mirrors_of(_settings()).all()]
    ctx.obj.show(found, _table(found))


def link(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="See `video-api weights list`.", show_default=False)],
    expires: Annotated[float, span("--expires", "How long it is good, from 1h to 7d. Default: 1d.", bare="h")] = _DAY_S,
    model: Annotated[
        str, typer.Option(help="Which model's weights they are. Default: the one called NAME.", show_default=False)
    ] = "",
) -> None:
    """Print a link to a mirrored checkpoint, and the variable by which `node join` fetches it.

    Whoever has the link can read these weights until it expires, and nothing else. It can't be taken back.
    """
    variable = weights_variable(model or name)
    expires_s = round(expires)
    if not _HOUR_S <= expires_s <= _MOST_S:
        raise UsageProblem("--expires: a link is good for 1h at least, and for 7d at most")
    with _explained():
        mirrors = mirrors_of(_settings())
        # The links are no older than this.
        expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
        url = linked(mirrors, name, expires_s)
    line = f"{variable}={shlex.quote(url)}"
    session: Session = ctx.obj
    until = expires_at.isoformat(timespec="seconds")
    session.err.print(f"Whoever has this link can read {name} until {moment(until)}, and nothing else.", soft_wrap=True)
    found = {"name": name, "url": url, "variable": variable, "line": line, "expires_at": until}
    session.show(found, f"{url}\n{line}")


def _copy(
    session: Session, text: str, name: str, include: Sequence[str], exclude: Sequence[str]
) -> "tuple[str, Copied]":
    """What the checkpoint is called, and what was done."""
    from serve_app.storage import keys
    from serve_app.weights.mirrors import chosen

    settings = _settings()
    mirrors = mirrors_of(settings)
    source = _source(text)
    name = name or source.name.rpartition("/")[2]
    try:
        keys.weights_folder(name)
    except ValueError as error:
        raise UsageProblem(f"{error}. Give another one with --name.") from None
    if settings.r2_public_url:
        public = f"R2_PUBLIC_URL: this bucket is open to all, so who guesses {keys.weights_manifest(name)} has them."
        session.err.print(f"{public} See whether their licence allows that.", style="yellow", soft_wrap=True)
    with showing_steps(session.err) as on_step:
        return name, mirrors.copy(source, chosen(source.files(), include, exclude), name, on_step)


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of the bucket and of sources, as this command line shows errors."""
    from serve_app.storage.base import StorageError
    from serve_app.weights.source import MirrorError

    try:
        yield
    except StorageError as error:
        hint = "Look at R2_ENDPOINT, R2_BUCKET, R2_ACCESS_KEY and R2_SECRET_KEY: the key has to list, read and write."
        raise UsageProblem(f"{sentence(error.message)} {hint}") from None
    except MirrorError as error:
        raise UsageProblem(str(error)) from None


def _settings() -> "Settings":
    """Those of the service, of which only the bucket's count here."""
    from serve_app.settings import ConfigurationError, Settings

    load_dotenv(".env")
    try:
        settings = Settings.read("local")
    except ConfigurationError as error:
        raise UsageProblem(str(error)) from None
    if not settings.r2_endpoint:
        raise UsageProblem(
            "weights are mirrored to a bucket, and none is set: give R2_ENDPOINT, R2_ACCESS_KEY, R2_SECRET_KEY and "
            "R2_BUCKET, as the service has them"
        )
    return settings


def mirrors_of(settings: "Settings") -> "Mirrors":
    """Those of the service's bucket, which has to be set. No I/O."""
    from serve_app.storage.bucket import Bucket
    from serve_app.storage.s3 import connect
    from serve_app.weights.mirrors import Mirrors

    client = connect(
        endpoint=settings.r2_endpoint,
        access_key=settings.r2_access_key.get_secret_value(),
        secret_key=settings.r2_secret_key.get_secret_value(),
        region=settings.r2_region,
    )
    return Mirrors(Bucket(client, settings.r2_bucket))


def linked(mirrors: "Mirrors", name: str, expires_s: int) -> str:
    """The URL of a manifest by which a node fetches what is mirrored under the name. Raises what mirrors do."""
    from cluster.node.download import Manifest, WeightFile

    links = mirrors.links(name, expires_s)
    manifest = Manifest(
        files=tuple(
            WeightFile(path=file.path, size=file.size, sha256=file.sha256, url=url) for file, url in links.items()
        )
    )
    return mirrors.publish(manifest.model_dump_json().encode(), expires_s)


def _source(text: str) -> "Source":
    """What is on this machine goes before what the hub may have under the same name."""
    from serve_app.weights.source import LocalSource

    path = Path(text).expanduser()
    if path.exists():
        return LocalSource(path)
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        raise UsageProblem(f"{text}: no such file or folder, and no OWNER/NAME[@REVISION] of the model hub")
    from serve_app.weights.hub import HubSource

    endpoint, token = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN")
    return HubSource.find(match["name"], match["revision"], endpoint=endpoint, token=token)


def weights_variable(model: str) -> str:
    """What ``node join`` reads."""
    from deployments.registry import MODELS

    if model not in MODELS:
        raise UsageProblem(f"{model} is no model, so say with --model whose weights they are: {', '.join(MODELS)}")
    return f"{MODELS[model].weights_variable.removesuffix('_MODEL_PATH')}_WEIGHTS"


def _row(found: "Mirror") -> dict[str, Any]:
    manifest = found.manifest
    return {
        "name": found.name,
        "source": manifest and manifest.source,
        "revision": manifest and manifest.revision,
        "files": manifest and len(manifest.files),
        "bytes": manifest and manifest.total_bytes,
        "stored_bytes": found.stored_bytes,
        "mirrored_at": manifest and manifest.mirrored_at.isoformat(timespec="seconds"),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("NAME", "SOURCE", "FILES", "SIZE", "STORED", "MIRRORED"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        stored = size(row["stored_bytes"])
        if row["mirrored_at"] is None:
            table.add_row(row["name"], "-", "-", "-", stored, "not finished: mirror it again")
            continue
        origin = _origin(row["source"], row["revision"])
        table.add_row(row["name"], origin, str(row["files"]), size(row["bytes"]), stored, moment(row["mirrored_at"]))
    return table


def _origin(source: str, revision: str | None) -> str:
    return f"{source}@{revision[:12]}" if revision else source
