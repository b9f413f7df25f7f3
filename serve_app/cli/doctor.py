"""``video-api doctor``: whether what a head needs is there and works, part by part, before and while it runs.

Each part is used as the service uses it: an object is written and read back by links, the mesh's certificate is asked
for, and so on. Nothing is left behind, nothing that is secret is shown.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer
from rich.table import Table
from rich.text import Text

from serve_app.cli import rent_checks
from serve_app.cli.finding import Finding, Look, State
from serve_app.cli.head import CLUSTER, CONFIG, settings_of_cluster
from serve_app.cli.node_access import hub_address
from serve_app.cli.terminal import Code, Session, UsageProblem

if TYPE_CHECKING:
    from cluster.mesh.dialer import HubAddress
    from serve_app.settings import Settings

#: Seconds that a part gets. What takes longer is no use to a request either.
PART_S = 20.0
_PROBE = b"video-api doctor"


def doctor(
    ctx: typer.Context,
    hub: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="How nodes reach the head. Default: FLEET_HUB, or Railway's TCP proxy.",
            show_default=False,
        ),
    ] = "",
    config: Annotated[Path, typer.Option(dir_okay=False, help="The head's Serve YAML.")] = CONFIG,
    cluster: Annotated[Path, typer.Option(dir_okay=False, help="Its cluster YAML.")] = CLUSTER,
) -> None:
    """Look at all that a head needs: database, Redis, bucket, addresses, nodes; and with VAST_API_KEY, what they are
    rented by.

    Run it where the head's variables are set (on Railway: `railway ssh`). Exit code 2 if a part is wrong.
    """
    settings = settings_of_cluster("production")
    rents = bool(os.environ.get("VAST_API_KEY", "").strip())
    address = _address(hub or hub_address())

    async def mesh(settings: "Settings") -> Finding:
        return await _mesh(settings, address, rents)

    async def nodes(settings: "Settings") -> Finding:
        return await _nodes(settings, rents)

    looks: dict[str, Look] = {
        "secrets": _secrets,
        "database": _database,
        "redis": _redis,
        "bucket": _bucket,
        "weights": _weights,
        "address": _public_address,
        "mesh": mesh,
        "nodes": nodes,
        **rent_checks.looks(rents, config, cluster),
    }
    found = dict(zip(looks, asyncio.run(_all(settings, list(looks.values()))), strict=True))
    session: Session = ctx.obj
    session.show([{"part": part, **asdict(finding)} for part, finding in found.items()], _table(found))
    if any(finding.state is State.WRONG for finding in found.values()):
        raise typer.Exit(Code.USAGE)


async def _all(settings: "Settings", looks: Sequence[Look]) -> list[Finding]:
    async def bounded(look: Look) -> Finding:
        try:
            async with asyncio.timeout(PART_S):
                return await look(settings)
        except TimeoutError:
            return Finding(State.WRONG, f"no answer within {PART_S:g} s", "Can this machine reach it?")

    return await asyncio.gather(*map(bounded, looks))


async def _secrets(settings: "Settings") -> Finding:
    if settings.deprecations:
        remedy = "Set SECRET_KEY (openssl rand -hex 32); docs/security.md says what changes with it."
        return Finding(State.UNSET, settings.deprecations[0], remedy)
    return Finding(State.OK, "SECRET_KEY and API_KEY are set")


async def _database(settings: "Settings") -> Finding:
    import psycopg

    from serve_app.preflight import database_fault

    if fault := await asyncio.to_thread(database_fault, settings.database_url):
        return Finding(State.WRONG, fault, "Is it the URL of PostgreSQL as this machine reaches it, and is it up?")
    url = settings.database_url.replace("+psycopg", "", 1)
    async with await psycopg.AsyncConnection.connect(url) as db:
        answer = await db.execute("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
        row = await answer.fetchone()
        version = db.info.server_version // 10000
    if row is None or not row[0]:
        remedy = "ALTER ROLE … CREATEROLE: then what runs on Ray gets a role of its own, which can't read nodes' keys."
        return Finding(State.UNSET, f"PostgreSQL {version} answers, but its role may make no other", remedy)
    return Finding(State.OK, f"PostgreSQL {version} answers")


async def _redis(settings: "Settings") -> Finding:
    from serve_app import redis

    if not settings.redis_url:
        remedy = "Set REDIS_URL: then replicas on GPU nodes outlive a restart of the head."
        return Finding(State.UNSET, "REDIS_URL is not set", remedy)
    parts = urlsplit(settings.redis_url)
    words = [[unquote(word) for word in ("AUTH", parts.username or "", parts.password or "") if word]]
    commands = [*(words if parts.password else []), ["PING"]]
    try:
        answer = await redis.ask(
            parts.hostname or "", parts.port or redis.PORT, *commands, tls=parts.scheme == "rediss"
        )
    except OSError as error:
        return Finding(State.WRONG, f"REDIS_URL: {_cause(error)}", "Can this machine reach it?")
    if not answer.startswith("+"):
        said = answer.removeprefix("-") or "it closes the connection"
        return Finding(State.WRONG, f"Redis says: {said}", "Is REDIS_URL the one that the platform shows?")
    return Finding(State.OK, "Redis answers")


async def _bucket(settings: "Settings") -> Finding:
    import secrets

    import httpx

    from serve_app.storage import keys
    from serve_app.storage.base import StorageError
    from serve_app.wiring import build_storage

    if not settings.r2_endpoint:
        remedy = "Set R2_ENDPOINT and its keys: else videos lie on the head's disk, and go with it at a redeployment."
        return Finding(State.UNSET, "R2_ENDPOINT is not set", remedy)
    storage, folder = build_storage(settings), keys.probes(secrets.token_hex(8))
    key = f"{folder}probe"
    try:
        await storage.check()
        try:
            # As a GPU node does it, which has no key of the store.
            async with httpx.AsyncClient(trust_env=False) as node:
                put = await storage.presign_put(key, 60, "text/plain")
                (await node.put(put, content=_PROBE, headers={"content-type": "text/plain"})).raise_for_status()
                got = await node.get(await storage.presign_get(key, 60))
                got.raise_for_status()
        finally:
            await storage.delete_prefix(folder)
    except StorageError as error:
        return Finding(State.WRONG, error.message, "One of R2_ENDPOINT, R2_BUCKET and the two keys is wrong.")
    except httpx.HTTPStatusError as error:
        # Without the link, which is signed.
        found = f"a signed {error.request.method} is answered {error.response.status_code}"
        return Finding(State.WRONG, found, "May the key read and write objects? Is this machine's clock right?")
    except httpx.HTTPError as error:
        return Finding(State.WRONG, f"a signed link does not work ({type(error).__name__})", "Is R2_ENDPOINT right?")
    if got.content != _PROBE:
        return Finding(State.WRONG, "what was written is not what is read", "Is R2_ENDPOINT an S3 API, and no website?")
    return Finding(State.OK, f"{settings.r2_bucket}: written and read by signed links")


async def _weights(settings: "Settings") -> Finding:
    from deployments.registry import MODELS
    from serve_app.cli.weights import mirrors_of
    from serve_app.storage.base import StorageError

    if not settings.r2_endpoint:
        return Finding(
            State.UNSET, "none are mirrored: there is no bucket", "Nodes fetch them from the model hub then."
        )
    try:
        mirrors = await asyncio.to_thread(mirrors_of(settings).all)
    except StorageError:
        return Finding(State.UNSET, "not known while the bucket does not answer")
    broken = ", ".join(each.name for each in mirrors if each.manifest is None)
    if broken:
        return Finding(State.WRONG, f"{broken}: not all of it is mirrored", "Run its `video-api weights mirror` again.")
    if not mirrors:
        remedy = (
            f"`video-api weights mirror OWNER/NAME`, for {' and '.join(MODELS)}; or nodes fetch from the model hub."
        )
        return Finding(State.UNSET, "none are mirrored", remedy)
    return Finding(State.OK, f"mirrored: {', '.join(each.name for each in mirrors)}")


async def _public_address(settings: "Settings") -> Finding:
    import httpx

    remedy = "PUBLIC_URL is how clients reach the head. Is it up?"
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.get(f"{settings.base_url}/livez")
    except httpx.HTTPError as error:
        return Finding(State.WRONG, f"{settings.base_url}: {str(error) or type(error).__name__}", remedy)
    if answer.status_code != 200:
        return Finding(State.WRONG, f"{settings.base_url}/livez is answered {answer.status_code}", remedy)
    return Finding(State.OK, f"{settings.base_url} answers")


def _address(text: str) -> "HubAddress | None":
    from cluster.mesh.dialer import HubAddress

    try:
        return HubAddress.parse(text) if text else None
    except ValueError as error:
        raise UsageProblem(f"--hub or FLEET_HUB: {text}: {error}") from None


async def _mesh(settings: "Settings", address: "HubAddress | None", rents: bool) -> Finding:
    from cluster.mesh.control import PendingConnection
    from cluster.mesh.dialer import Dialer, WrongHub
    from cluster.mesh.identity import HubIdentity

    if address is None:
        remedy = f"Make a TCP proxy to port {settings.mesh_port}; elsewhere than on Railway set FLEET_HUB=HOST:PORT."
        state = State.WRONG if rents else State.UNSET
        return Finding(state, "how nodes reach the head is not known", remedy)
    where = f"{address.host}:{address.port}"
    dialer = Dialer(address, HubIdentity.derived(settings.mesh_secret).fingerprint)
    try:
        pending = await dialer.connect(PendingConnection())
    except WrongHub:
        remedy = "Has the head that runs another SECRET_KEY (or CLUSTER_SECRET) than this shell?"
        return Finding(State.WRONG, f"{where} is somebody else", remedy)
    except OSError as error:
        remedy = f"Does the proxy lead to port {settings.mesh_port}, and is the head up?"
        return Finding(State.WRONG, f"{where}: {_cause(error)}", remedy)
    pending.abort()
    return Finding(State.OK, f"{where} is this head")


async def _nodes(settings: "Settings", rents: bool) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from serve_app.cli.nodes import rows

    try:
        found = await rows(settings)
    except UsageProblem:
        return Finding(State.UNSET, "not known while the database does not answer")
    except SQLAlchemyError:
        return Finding(State.UNSET, "no head has used this database yet", "Start one: `video-api head`.")
    up = sum(row["state"] == "up" for row in found)
    if not up and rents:
        return Finding(State.OK, "none is up; the first job rents one")
    if not up:
        return Finding(State.UNSET, "no GPU node is up", "Invite one: `video-api node token`.")
    return Finding(State.OK, f"{up} up of {len(found)}")


def _cause(error: OSError) -> str:
    # asyncio's own words for a refused connection don't say that it was refused.
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__


_STYLES = {State.OK: "green", State.UNSET: "yellow", State.WRONG: "red"}


def _table(found: dict[str, Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    for part, finding in found.items():
        table.add_row(part, Text(finding.state, style=_STYLES[finding.state]), Text(finding.found))
        if finding.remedy:
            table.add_row("", "", Text(finding.remedy, style="dim"))
    return table
