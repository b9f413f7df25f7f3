"""The launcher's fleet with all its real neighbours but the service: what nodes say and ask, and whom it tells."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from cluster.bootstrap.head import HeadRefuses
from cluster.briefing import Briefing
from cluster.fleet.books import Deposed, PostgresBooks
from cluster.fleet.limits import Limits
from cluster.fleet.waiting import Reason
from cluster.head import renting
from cluster.head.attendance import Run
from cluster.head.renting import NoWeights
from cluster.mesh.agent import NodeRefused
from cluster.mesh.dialer import HubAddress
from cluster.mesh.plan import SLOTS
from cluster.mesh.registry import invite
from cluster.mesh.wire import Reason as Refusal
from cluster.node.process import NodeOptions
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import offer
from tests.fakes.vast_server import Fault
from tests.fakes.world import TYPE
from tests.parts.cluster.head.launcher import IDENTITY, PREFIX, Launcher, Service, launcher, market
from tests.parts.cluster.mesh.loopback import until

STATE = "SELECT state FROM rentals"
Start = Callable[..., AbstractAsyncContextManager[Launcher]]


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a look's turn."""
    for name in ("ATTEND_S", "WEIGHTS_S", "AGAIN_S", "TELL_S"):
        monkeypatch.setattr(renting, name, 0.05)
    monkeypatch.setattr(renting, "Limits", partial(Limits, pass_s=0.05, retry_s=0.2, missing_s=0.2))


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def start(engine: AsyncEngine, tmp_path: Path, service: Service) -> Start:
    return partial(launcher, engine, tmp_path, service)


@pytest.fixture
async def head(start: Start) -> AsyncIterator[Launcher]:
    async with start() as running:
        yield running


# ---------------------------------------------------------------- what nodes say


async def test_what_a_node_says_before_and_after_it_joined_is_in_the_books(head: Launcher) -> None:
    machine = await head.rented()
    await machine.say(state="installing", down=1000)
    await head.until(STATE, [("installing",)])
    agent, running = await head.joined(machine.env["MESH_TOKEN"], "anything", 2)
    agent.report(json.dumps({"state": "idle", "down": 2000, "up": 30}))
    await head.until(STATE, [("idle",)])
    await head.until("SELECT up_bytes FROM rentals", [(30.0,)])
    running.cancel()


NONSENSE = {
    "no JSON": "state=idle",
    "nothing": "",
    "a list": "[]",
    "deep": "[" * 1000,
    "another state": '{"state": "flying"}',
    "a state that is the head's to say": '{"state": "ended"}',
    "work that the head knows better": '{"state": "busy"}',
    "no number": '{"state": "idle", "down": NaN}',
    "no end": '{"state": "idle", "up": 1e999}',
    "less than nothing": '{"state": "idle", "down": -1}',
    "half a character": r'{"state": "idle", "fault": "\ud800"}',
    "a long story": json.dumps({"state": "idle", "fault": "x" * 990})[:1000],
}


async def test_nonsense_is_not_heard_and_what_makes_sense_after_it_is(
    head: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await head.rented()
    agent, running = await head.joined(machine.env["MESH_TOKEN"], "", 2)
    # The hub would let so much at once be lost.
    (node,) = await head.registry.nodes()
    with capture_logs() as logs:
        for nonsense in NONSENSE.values():
            head.renting.hear(node, nonsense)
    refused = [each for each in logs if each["event"] == "fleet.report_unreadable"]
    assert len(refused) == len(NONSENSE)
    agent.report('{"state": "joining"}')
    await head.until(STATE, [("joining",)])
    assert not running.done()
    running.cancel()


async def test_a_node_can_t_have_fetched_more_than_there_was_time_for(head: Launcher) -> None:
    machine = await head.rented()
    await machine.say(state="installing", down=1e30, up=1e30)
    await head.until(STATE, [("installing",)])
    await head.until("SELECT up_bytes < 1.25e9 * 120 AND down_bytes < 6e9 + 1.25e9 * 120 FROM rentals", [(True,)])


async def test_a_fault_that_no_database_takes_ends_its_own_machine_and_nothing_else(head: Launcher) -> None:
    machine = await head.rented()
    await machine.say(state="installing", fault="no\0 disk\x1b[2J\n" + "x" * 800)
    await head.until("SELECT state FROM rentals WHERE why IS NOT NULL AND instance IS NOT NULL", [("ended",)])
    ((detail,),) = await head.query("SELECT detail FROM rentals WHERE why = 'failed'")
    assert detail.startswith("no  disk [2J xx")
    assert len(detail) == 300
    assert not head.ended.done()


async def test_who_has_not_joined_can_not_be_idle(head: Launcher) -> None:
    machine = await head.rented()
    await machine.say(state="idle")
    await machine.say(state="weights")
    await head.until(STATE, [("weights",)])
    assert await head.query("SELECT worked_at FROM rentals") == [(None,)]


async def test_nobody_is_heard_whom_nobody_has_rented(head: Launcher) -> None:
    _, invitation = await invite(head.registry, IDENTITY, f"{PREFIX}-1", 60)
    machine = await head.rented()
    agent, running = await head.joined(invitation.token(), f"{PREFIX}-2", 2)
    agent.report('{"state": "idle"}')
    await machine.say(state="weights")
    await head.until(STATE, [("weights",)])
    running.cancel()


# ---------------------------------------------------------------- what nodes ask


async def test_a_rented_machine_is_told_what_it_is(head: Launcher) -> None:
    machine = await head.rented()
    order = await machine.order()
    arguments = ["--name", machine.contract.label, "--instance", "slot-1", "--node-type", TYPE]
    # Ray was told that it would have these.
    labels = [f"{key}={value}" for key, value in sorted(head.renting._options.cluster.node_types[TYPE].labels.items())]
    assert "gpu-class=4090" in labels
    assert order["arguments"] == [*arguments, *(word for label in labels for word in ("--label", label))]
    assert order["environment"] == {"WAV2LIP_WEIGHTS": "https://store/manifest.json?signature=secret"}


async def test_a_machine_that_nobody_has_rented_is_told_nothing(head: Launcher) -> None:
    """It may be the head's first moment, in which it knows of none: to ask again is fine."""
    await head.wish("slot-1")
    _, invitation = await invite(head.registry, IDENTITY, f"{PREFIX}-1", 60)
    machine = await head.rented()
    machine.contract.body["env"]["MESH_TOKEN"] = invitation.token()
    with pytest.raises(HeadRefuses) as refused:
        await machine.order()
    assert refused.value.reason is Refusal.UNAVAILABLE
    assert not refused.value.reason.final


async def test_weights_that_are_gone_since_it_was_rented_end_it_and_blame_nobody(
    head: Launcher, service: Service
) -> None:
    machine = await head.rented()
    service.faults[TYPE] = NoWeights("no weights wav2lip are in the bucket")
    with pytest.raises(HeadRefuses):
        await machine.order()
    ended = ("ended", "weights", "weights: no weights wav2lip are in the bucket")
    await head.until("SELECT state, why, detail FROM rentals", [ended])
    assert await head.query("SELECT count(*) FROM blocked_hosts") == [(0,)]
    assert await head.query("SELECT count(*) FROM breakers") == [(0,)]
    assert head.vast.alive == []
    # It was the only one, and the next is rented when they are back.
    await head.until_told(lambda told: told.wait is not None and told.wait.reason is Reason.NO_WEIGHTS)
    service.faults.clear()
    await head.until("SELECT count(*) FROM rentals WHERE instance IS NOT NULL", [(2,)])


async def test_a_store_that_is_away_for_a_moment_costs_no_machine(head: Launcher, service: Service) -> None:
    machine = await head.rented()
    service.faults[TYPE] = NoWeights("the bucket does not answer", passing=True)
    with pytest.raises(HeadRefuses):
        await machine.order()
    await head.until_told(lambda told: told.wait is not None)
    await head.passes(2)
    service.faults.clear()
    assert (await machine.order())["environment"]
    assert [each.label for each in head.vast.alive] == [machine.contract.label]
    await head.until_told(lambda told: told.wait is None)


# ---------------------------------------------------------------- the door


async def test_a_machine_that_is_given_back_is_shut_out_at_once(head: Launcher) -> None:
    machine = await head.rented()
    _, running = await head.joined(machine.env["MESH_TOKEN"], "", 2)
    await head.works()
    await head.wish(dismiss=["slot-1"])
    # The hub reads its list by itself in an hour.
    with pytest.raises(NodeRefused):
        await running
    with pytest.raises(HeadRefuses):
        await machine.say(state="idle")
    await head.until(STATE, [("ended",)])
    assert head.vast.alive == []


async def test_a_node_that_joined_by_hand_is_listed_as_it_calls_itself_and_a_rented_one_only_once(
    head: Launcher, tmp_path: Path
) -> None:
    machine = await head.rented()
    # Nodes name themselves as they like.
    _, first = await head.joined(machine.env["MESH_TOKEN"], "by-hand", 2)
    _, invitation = await invite(head.registry, IDENTITY, "", 60)
    token = invitation.token()
    _, second = await head.joined(token, f"{PREFIX}-mine", 3)
    options = NodeOptions(hub=HubAddress("h", 1), token=token, state=tmp_path, name="x", version="1")
    known = options.known_as(Briefing.of_this_head("token", "1", "by_hand"))
    expected = {"slot-1": TYPE, known["RAY_CLOUD_INSTANCE_ID"]: known["RAY_NODE_TYPE_NAME"]}
    while await head.wish() != expected:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.02)
    # To end it is not ours.
    await head.wish(dismiss=[known["RAY_CLOUD_INSTANCE_ID"]])
    await head.works()
    assert await head.wish() == expected
    for running in (first, second):
        assert not running.done()
        running.cancel()


async def test_a_node_that_joined_by_hand_and_has_left_is_not_there(head: Launcher) -> None:
    """Nobody revokes a machine that somebody has switched off."""
    _, invitation = await invite(head.registry, IDENTITY, "", 60)
    _, running = await head.joined(invitation.token(), "", 2)
    running.cancel()
    for minutes, count in ((0, 1), (16, 0), (14, 1)):
        async with head.engine.begin() as db:
            await db.exec_driver_sql(f"UPDATE nodes SET last_seen_at = now() - interval '{minutes} minutes'")
        while len(await head.wish()) != count:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)


async def test_a_mesh_without_room_is_why_nothing_is_rented(head: Launcher) -> None:
    await head.query("SELECT 1")
    async with head.engine.begin() as db:
        await db.exec_driver_sql(
            "INSERT INTO nodes (slot, name, token_hash, token_expires_at, key_hash, joined_at)"
            f" SELECT s, 'x', sha256(s::text::bytea), now(), 'k', now() FROM generate_series(2, {SLOTS}) AS s"
        )
    await head.wish("slot-1")
    told = await head.until_told(lambda told: told.wait is not None)
    assert told.wait.reason is Reason.DOOR
    assert head.vast.contracts == {}


# ---------------------------------------------------------------- weights, the market, the service


async def test_nothing_is_rented_before_there_are_weights(start: Start, service: Service) -> None:
    service.faults[TYPE] = NoWeights("WAV2LIP_WEIGHTS is not set")
    async with start() as head:
        await head.wish("slot-1")
        told = await head.until_told(lambda told: told.wait is not None and told.usd_per_hour is not None)
        assert (told.wait.reason, told.wait.detail) == (Reason.NO_WEIGHTS, "WAV2LIP_WEIGHTS is not set")
        assert head.vast.asked["rent"] == 0
        service.faults.clear()
        await head.until("SELECT instance IS NOT NULL FROM rentals", [(True,)])


@pytest.mark.parametrize("trouble", ["a defect", "silence"])
async def test_weights_that_can_t_be_looked_at_keep_no_head_from_its_start(
    start: Start, service: Service, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(renting, "LOOK_S", 0.2)
    if trouble == "silence":
        service.silent.add(TYPE)
    else:
        service.faults[TYPE] = RuntimeError("a defect")
    async with start() as head:
        await head.wish("slot-1")
        told = await head.until_told(lambda told: told.wait is not None)
        assert told.wait.reason is Reason.NO_WEIGHTS
        assert told.wait.detail == ("no answer within 0.2 s" if trouble == "silence" else "RuntimeError")
        assert head.vast.asked["rent"] == 0
        service.silent.clear()
        service.faults.clear()
        await head.until("SELECT instance IS NOT NULL FROM rentals", [(True,)])


async def test_the_service_is_told_prices_and_how_long_a_start_takes(head: Launcher) -> None:
    told = await head.until_told(lambda told: told.usd_per_hour is not None)
    disk = 33 * 0.2 / 730
    assert told.usd_per_hour == pytest.approx((0.357 + disk, 0.6 + disk))
    assert told.traffic_usd == pytest.approx(7e9 / 1e9 * 0.005)
    assert told.wait is None
    expected_s = told.start_s
    # Of the image and the weights on a line of 1800 Mb/s, and the rest.
    assert expected_s == pytest.approx(60 + 8 * 7e9 / 1.8e9)
    await head.rented()
    await head.works()
    # From then on it is measured.
    told = await head.until_told(lambda told: told.start_s != expected_s)
    assert told.start_s < 30


async def test_a_market_that_is_empty_has_no_prices(start: Start) -> None:
    async with start(market()) as head:
        await head.wish("slot-1")
        told = await head.until_told(lambda told: told.wait is not None)
        assert (told.wait.reason, told.start_s, told.usd_per_hour) == (Reason.NO_OFFER, None, None)
        assert told.traffic_usd == 0


async def test_a_market_that_did_not_show_itself_is_looked_at_again_soon(head: Launcher) -> None:
    """And one that did only after half an hour: Vast limits searches by the day."""
    await head.until_told(lambda told: told.usd_per_hour is not None)
    searches = head.vast.asked["search"]
    # What the provider remembers is older than a minute.
    assert isinstance(head.vast.clock, VirtualClock)
    head.vast.clock.seconds += 61
    await head.passes(5)
    assert head.vast.asked["search"] == searches
    head.renting._looked.clear()
    head.server.vast.offers[0]["dph_base"] = 0.3
    head.server.fail("search", *[Fault(status=429, body=b"slow", headers={"Retry_After": "900"})] * 2)
    assert (await head.until_told(lambda told: told.usd_per_hour[0] < 0.33)).usd_per_hour[0] == pytest.approx(
        0.309, abs=1e-3
    )


async def test_a_service_that_can_t_be_told_once_is_told_again(start: Start, service: Service) -> None:
    service.away = 1
    async with start() as head:
        await head.until_told(lambda told: told.wait is None)
    assert service.away == 0


async def test_work_is_booked_as_the_service_knows_it(head: Launcher, service: Service) -> None:
    await head.rented()
    await head.works()
    begun = datetime.now(UTC)
    service.found = [Run(node="slot-1", begun_at=begun), Run(node="somebody-else", begun_at=begun)]
    await head.until(STATE, [("busy",)])
    service.found = [Run(node="slot-1", begun_at=begun, ended_at=datetime.now(UTC))]
    await head.until(STATE, [("idle",)])
    seconds = "SELECT count(*), sum(extract(epoch FROM until - begun_at)) < 60 FROM node_costs WHERE state = 'busy'"
    assert await head.query(seconds) == [(1, True)]


async def test_a_short_run_of_a_new_node_is_seen_beside_an_older_one(head: Launcher, service: Service) -> None:
    """It ended before the last thing that was said of the other one, and before the fleet knew that it works."""
    await head.rented()
    await head.works()
    await head.wish("slot-2")
    await head.until("SELECT count(*) FROM rentals WHERE instance IS NOT NULL", [(2,)])
    now = datetime.now(UTC)
    short = Run(node="slot-2", begun_at=now + timedelta(seconds=1), ended_at=now + timedelta(seconds=2))
    service.found = [Run(node="slot-1", begun_at=now, ended_at=now + timedelta(seconds=3))]
    await until(lambda: "slot-1" in head.renting._attended)
    service.found.append(short)
    await head.works(2)
    await until(lambda: "slot-2" in head.renting._attended)
    assert head.renting._attended["slot-2"].at == short.ended_at


async def test_little_credit_is_told_once_even_if_that_fails(start: Start, service: Service) -> None:
    service.alert_fault = RuntimeError("nobody takes it")
    with capture_logs() as logs:
        async with start(market(offer(1), deposit=3.0)) as head:
            name, facts = await service.alerts.get()
            assert (name, facts) == ("credit_low", {"credit_usd": 3.0, "limit_usd": 5.0})
            await head.rented()
            assert service.alerts.empty()
    (failed,) = [each for each in logs if each["event"] == "fleet.alert_failed"]
    assert failed["reason"] == "nobody takes it"


# ---------------------------------------------------------------- its end, and others'


async def test_a_head_that_is_deposed_ends_and_says_nothing_any_more(
    head: Launcher, service: Service, engine: AsyncEngine
) -> None:
    await head.until_told(lambda told: True)
    await PostgresBooks(engine).take_over()
    with pytest.raises(Deposed):
        await head.ended
    await head.renting.close()
    service.told = {}
    await asyncio.sleep(3 * renting.TELL_S)
    assert service.told == {}


@pytest.mark.own_database
async def test_a_database_that_is_away_for_a_while_ends_nothing(
    head: Launcher, service: Service, database_url: str
) -> None:
    service.away = 10**6
    machine = await head.rented()
    url = database_url.replace("+psycopg", "", 1)
    name = urlsplit(url).path.removeprefix("/")
    with capture_logs() as logs, psycopg.connect(url.replace(f"/{name}?", "/postgres?"), autocommit=True) as db:
        db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        await until(lambda: {"fleet.pass_failed", "fleet.loop_failed"} <= {each["event"] for each in logs})
        db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        service.away = 0
    assert not head.ended.done()
    await machine.say(state="weights")
    await head.until(STATE, [("weights",)])


async def test_whoever_comes_next_adopts_what_is_rented(start: Start, engine: AsyncEngine) -> None:
    vast = market(offer(1), offer(2))
    async with start(vast) as first:
        machine = await first.rented()
        token: Any = machine.env["MESH_TOKEN"]
    async with start(vast) as second:
        assert await second.wish() == {"slot-1": TYPE}
        _, running = await second.joined(token, "", 2)
        await second.works()
        assert [each.label for each in vast.alive] == [machine.contract.label]
        running.cancel()
