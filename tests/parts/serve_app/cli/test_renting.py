"""What reaches Vast of an order, and the service as the fleet asks it: who works, what it is told, whom it alerts."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from cluster.autoscaler.configuration import ClusterConfig
from cluster.fleet.provider import Order
from cluster.fleet.waiting import Reason, Wait
from cluster.head.attendance import Run
from cluster.head.door import MeshDoor
from cluster.head.renting import Outlook
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity
from cluster.vast.rental import MAX_COMMAND, MAX_ENV_BYTES, MAX_ENV_VALUE
from serve_app.cli.renting import IMAGE, Service, renting
from serve_app.jobs.outlooks import Outlooks
from serve_app.settings import Settings
from tests.fakes.http_peer import HttpPeer
from tests.fakes.http_source import HttpSource, reply
from tests.fakes.vast import KEY, FakeVast, a100
from tests.fakes.vast_server import VastServer
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

ROOT = Path(__file__).parents[4]
IDENTITY = HubIdentity.derived(b"the head that rents in the tests")
SECRET = SecretStr("s" * 32)


async def test_what_is_ordered_of_vast_stays_within_its_limits_and_gives_itself_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the real seed, an invitation of a real door, and a host with a long name."""
    hub_address = f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 50}.example:65535"
    async with VastServer(FakeVast([a100(1)])) as server:
        for name, value in (("VAST_API_KEY", KEY), ("VAST_URL", server.url + "/"), ("FLEET_HUB", "head:1")):
            monkeypatch.setenv(name, value)
        wanted = yaml.safe_load((ROOT / "configs/production.yaml").read_text())
        options = renting(Settings(secret_key=SECRET), wanted, ClusterConfig.read(ROOT / "configs/cluster.yaml"))
        assert options is not None
        registry = MemoryRegistry()
        hub = Hub(IDENTITY, registry, port=0)
        door = MeshDoor(
            registry, IDENTITY, hub, hub_address=hub_address, by_hand="by_hand", is_rented=lambda node: False
        )
        admission = await door.admit(f"{options.prefix}-{'0' * 32}")
        (candidate,) = await options.provider.candidates("gpu_a100", ())
        order = Order(
            label=f"{options.prefix}-{'0' * 32}", node_type="gpu_a100", candidate=candidate, env=admission.env
        )
        machine = await options.provider.rent(order)
        (contract,) = server.vast.contracts.values()
        body = contract.body
        assert (machine.label, body["image"], body["runtype"]) == (order.label, IMAGE, "args")
        assert sum(map(len, body["args"])) + len(body.get("onstart", "")) <= MAX_COMMAND
        assert max(map(len, body["env"].values())) <= MAX_ENV_VALUE
        assert sum(len(f"{name}={value}".encode()) for name, value in body["env"].items()) <= MAX_ENV_BYTES
        assert set(body["env"]) == {"HUB", "MESH_TOKEN", "END_URL"}
        assert body["env"]["END_URL"] == f"{server.url}/api/v0/instances/$CONTAINER_ID/"
        # The account's key goes nowhere.
        assert KEY not in json.dumps(body)


# ---------------------------------------------------------------- the service


@pytest.fixture
def service() -> Service:
    return Service(Settings(secret_key=SECRET), {"gpu_a100": ["ltx2"], "gpu_4090": ["wav2lip", "still"]})


async def test_those_who_work_and_those_who_did_since(service: Service, engine: AsyncEngine, database_url: str) -> None:
    now = datetime.now(UTC)
    ago = [now - timedelta(minutes=each) for each in range(60)]
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as db:
        for job, node, begun, ended in (
            ("1", "slot-1", ago[50], ago[40]),
            ("2", "slot-1", ago[30], ago[10]),
            ("3", "slot-1", ago[55], None),
            ("4", "slot-2", ago[5], None),
            ("5", "another", ago[5], None),
        ):
            db.execute(
                "INSERT INTO runs (job_id, attempt, started_at, model, node, effort, ended_at, busy_s, outcome)"
                " VALUES (%s, 1, %s, 'ltx2', %s, 1, %s, %s, %s)",
                (job, begun, node, ended, ended and 1, ended and "completed"),
            )
    found = await service.runs(engine, {"slot-1", "slot-2"}, ago[20])
    assert sorted(found, key=lambda run: run.begun_at) == [
        Run(node="slot-1", begun_at=ago[55]),
        Run(node="slot-1", begun_at=ago[30], ended_at=ago[10]),
        Run(node="slot-2", begun_at=ago[5]),
    ]


async def test_each_model_of_a_type_is_told_what_to_expect_of_it(service: Service, engine: AsyncEngine) -> None:
    cap = Wait(Reason.HOUR_CAP, "$4.000 of $3.000 per hour")
    known = Outlook(wait=cap, start_s=360, usd_per_hour=(0.3, 0.5), traffic_usd=0.1, credit_usd=None)
    nothing = Outlook(wait=None, start_s=None, usd_per_hour=None, traffic_usd=0, credit_usd=None)
    await service.publish(engine, {"gpu_4090": known, "gpu_a100": nothing})
    told = await Outlooks(engine).current()
    assert set(told) == {"ltx2", "wav2lip", "still"}
    assert told["wav2lip"] == told["still"]
    assert (told["wav2lip"].usd_per_hour_low, told["wav2lip"].usd_per_hour_high) == (0.3, 0.5)
    assert told["wav2lip"].start_s == 360
    assert told["wav2lip"].start_usd == pytest.approx(0.5 * 360 / 3600 + 0.1)
    assert told["wav2lip"].code == "cap_reached"
    assert "($4.000 of $3.000 per hour)." in told["wav2lip"].message
    # Of the other one nothing was measured and nothing seen: what its work lets expect, and no price.
    assert told["ltx2"].start_s == pytest.approx(120 + 8 * 74.5e9 / 1e9)
    assert (told["ltx2"].usd_per_hour_low, told["ltx2"].start_usd, told["ltx2"].code) == (None, None, None)
    # Later it is otherwise.
    await service.publish(engine, {"gpu_4090": nothing})
    assert (await Outlooks(engine).current())["wav2lip"].code is None


FACTS = {"credit_usd": 3.2, "limit_usd": 5.0}


def of_webhook(url: str) -> Service:
    return Service(Settings(secret_key=SECRET, api_webhook_url=url), {})


async def test_an_alert_is_signed_like_every_webhook(service: Service) -> None:
    with HttpPeer() as peer:
        await of_webhook(peer.url + "/hook").alert("credit_low", FACTS)
        posted = peer.posted.get(timeout=10)
    told = Webhook(Settings(secret_key=SECRET).signing_secret).verify(posted.body, posted.headers)
    assert (told["type"], told["data"]) == ("fleet.credit_low", FACTS)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(told["timestamp"])) < timedelta(minutes=1)
    # Without an address there is nobody to tell.
    await service.alert("credit_low", FACTS)


async def test_a_receiver_that_is_down_or_does_not_want_it_costs_nothing() -> None:
    async with HttpSource({"/no": reply(500), "/elsewhere": reply(302, Location="/no")}) as receiver:
        with capture_logs() as logs:
            for url in (receiver.url("/no"), receiver.url("/elsewhere"), "http://127.0.0.1:9/hook"):
                await of_webhook(url).alert("credit_low", FACTS)
        asked = [each.target for each in receiver.seen]
    assert asked == ["/no", "/elsewhere"]
    assert [(each["event"], each["reason"]) for each in logs] == [
        ("fleet.alert_not_taken", "HTTPStatusError"),
        ("fleet.alert_not_taken", "HTTPStatusError"),
        ("fleet.alert_not_taken", "ConnectError"),
    ]
