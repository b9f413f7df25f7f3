"""Each call against the fake: what it returns, every way in which it fails, and what it never tells."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from cluster.vast.client import VastClient
from cluster.vast.errors import NoCredit, RateLimited, Refused, SearchQuotaExceeded, Unauthorized, Unavailable
from cluster.vast.exchange import TRIES
from cluster.vast.node_type import GPU_4090
from cluster.vast.search import fitting, market
from tests.fakes.clock import VirtualClock
from tests.fakes.tcp_hole import Hole
from tests.fakes.vast import KEY, FakeVast, Scenario, offer
from tests.fakes.vast_server import SHAPES, Fault, VastServer, too_many
from tests.parts.cluster.vast.requests import TOKEN, request


async def call(client: VastClient, endpoint: str) -> Any:
    calls = {
        "search": lambda: client.search(market(GPU_4090)),
        "list": client.instances,
        "show": lambda: client.show(9001),
        "destroy": lambda: client.destroy(9001),
        "account": client.credit,
        "charges": lambda: client.charges(DAY, DAY),
        "rent": lambda: client.rent(request()),
    }
    return await calls[endpoint]()


DAY = datetime(2026, 1, 1, tzinfo=UTC)
REPEATED = ("search", "list", "show", "destroy", "account", "charges")
ALL = (*REPEATED, "rent")


async def test_a_machine_is_found_rented_seen_and_given_back(
    client: VastClient, server: VastServer, clock: VirtualClock
) -> None:
    server.vast.scenarios[1001] = Scenario(pull_s=60, boot_s=10)
    page = await client.search(fitting(GPU_4090))
    assert [each.id for each in page.offers] == [1, 2, 3]
    assert page.offers[0].dph_total == pytest.approx(0.357 + 33 * 0.2 / 730)

    instance = await client.rent(request())
    assert (instance.id, instance.label, instance.is_bid) == (9001, "video-api-1", False)
    clock.seconds += 30
    assert (await client.instances())[0].actual_status == "loading"
    clock.seconds += 60
    shown = await client.show(instance.id)
    assert shown is not None
    assert (shown.actual_status, shown.intended_status, shown.machine_id) == ("running", "running", 1001)

    await client.destroy(instance.id)
    assert await client.show(instance.id) is None
    assert await client.instances() == ()
    assert await client.credit() == pytest.approx(25 - sum(server.vast.bill()[9001].values()))


async def test_charges_are_by_instance_over_whole_days_and_pages(
    client: VastClient, server: VastServer, clock: VirtualClock
) -> None:
    body = {"client_id": "me", "image": "x", "disk": 33, "label": "x", "runtype": "args", "env": {}}
    server.vast.offers = [offer(number) for number in range(1, 251)]
    server.vast.deposit = 1000
    for number in range(1, 251):
        server.vast.rent(number, body)
    clock.seconds += 3600
    today = clock.now()
    found = await client.charges(today, today)
    assert found == {
        number: pytest.approx(sum(meters.values()), abs=0.001) for number, meters in server.vast.bill().items()
    }
    assert server.vast.asked["charges"] == 3
    clock.seconds += 86400
    assert await client.charges(clock.now(), clock.now()) == {}
    assert len(await client.charges(today, clock.now())) == 250


@pytest.mark.parametrize("row", [{"source": "instance-7"}, {"amount": 1}, {"source": "volume-7", "amount": 1}, 7])
async def test_a_charge_that_can_t_be_read_is_not_passed_over(
    client: VastClient, server: VastServer, row: object
) -> None:
    server.fail("charges", Fault(status=200, body=json.dumps({"success": True, "results": [row]}).encode()))
    with pytest.raises(Unavailable, match="a charge can't be read"):
        await client.charges(DAY, DAY)


async def test_charges_of_several_days_are_one_sum(client: VastClient, server: VastServer) -> None:
    rows = [{"source": "instance-7", "amount": usd} for usd in (0.5, "0.25")]
    server.fail("charges", Fault(status=200, body=json.dumps({"success": True, "results": rows}).encode()))
    assert await client.charges(DAY, DAY) == {7: 0.75}


async def test_what_is_sent_is_what_was_asked_for(client: VastClient, server: VastServer) -> None:
    await client.rent(request(onstart="echo", bid_usd=0.2))
    (rent,) = (json.loads(seen.body) for seen in server.seen if seen.method == "PUT")
    assert rent["env"] == {"TOKEN": TOKEN}
    assert (rent["runtype"], rent["args"], rent["onstart"]) == ("args", ["join"], "echo")
    assert (rent["price"], rent["cancel_unavail"], rent["disk"]) == (0.2, True, 33)


@pytest.mark.parametrize("endpoint", REPEATED)
@pytest.mark.parametrize(
    "fault", [Fault(), Fault(status=503, body=b"{}"), Fault(cut=True), Fault(status=200, body=b"<html>"), too_many()]
)
async def test_what_passes_is_tried_again(client: VastClient, server: VastServer, endpoint: str, fault: Fault) -> None:
    server.fail(endpoint, *[fault] * (TRIES - 1))
    await call(client, endpoint)
    assert server.vast.asked[endpoint] == TRIES


@pytest.mark.parametrize("endpoint", REPEATED)
@pytest.mark.parametrize(("fault", "error"), [(Fault(), Unavailable), (too_many(), RateLimited)])
async def test_what_stays_is_given_up(
    client: VastClient, server: VastServer, endpoint: str, fault: Fault, error: type[Exception]
) -> None:
    server.fail(endpoint, *[fault] * TRIES)
    with pytest.raises(error):
        await call(client, endpoint)
    assert server.vast.asked[endpoint] == TRIES


@pytest.mark.parametrize("said", ["7", "Thu, 01 Jan 2026 18:00:07 GMT"])
async def test_who_is_told_when_to_come_again_comes_then(
    client: VastClient, server: VastServer, clock: VirtualClock, said: str
) -> None:
    server.fail("list", too_many(said))
    await client.instances()
    assert clock.seconds == pytest.approx(7)


async def test_who_is_told_to_stay_away_for_long_hears_of_it(client: VastClient, server: VastServer) -> None:
    server.fail("list", too_many("300"))
    with pytest.raises(RateLimited) as caught:
        await client.instances()
    assert caught.value.retry_after_s == 300
    assert server.vast.asked["list"] == 1


async def test_a_search_quota_that_is_used_up_says_until_when(client: VastClient, server: VastServer) -> None:
    server.vast.searches_left = 0
    with pytest.raises(SearchQuotaExceeded, match="2026-01-02 00:00") as caught:
        await call(client, "search")
    assert caught.value.until == datetime(2026, 1, 2, tzinfo=UTC)
    assert server.vast.asked["search"] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("endpoint", ALL)
async def test_a_wrong_key_is_unauthorized_in_every_shape_and_is_not_repeated(
    server: VastServer, clock: VirtualClock, endpoint: str, shape: str
) -> None:
    """The fake quotes the key, as servers do."""
    server.shape = shape
    async with VastClient("wrong-key", server.url, clock=clock) as client:
        with pytest.raises(Unauthorized) as caught:
            await call(client, endpoint)
    assert "wrong-key" not in str(caught.value)
    assert server.vast.asked[endpoint] == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_account_without_credit_is_said_to_be_one(client: VastClient, server: VastServer, shape: str) -> None:
    server.shape, server.vast.deposit = shape, 0
    with pytest.raises(NoCredit):
        await client.rent(request())
    assert server.vast.contracts == {}


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_vast_does_not_understand_is_refused_once(
    client: VastClient, server: VastServer, shape: str
) -> None:
    server.shape = shape
    with pytest.raises(Refused, match=r"unknown condition|invalid_args") as caught:
        await client.search({"colour": {"eq": "red"}})
    assert caught.value.status == 400
    assert server.vast.asked["search"] == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"success": false, "msg": "no"}', Refused),
        (b'{"offers": null}', Unavailable),
        (b"[]", Unavailable),
        (b"null", Unavailable),
    ],
)
async def test_a_success_without_its_content_is_an_error(
    client: VastClient, server: VastServer, body: bytes, error: type[Exception]
) -> None:
    server.fail("search", *[Fault(status=200, body=body)] * TRIES)
    with pytest.raises(error):
        await call(client, "search")


async def test_a_redirect_is_not_followed(client: VastClient, server: VastServer) -> None:
    server.fail("account", Fault(status=308, body=b"", headers={"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(Refused, match="address"):
        await client.credit()
    assert len(server.seen) == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_instance_that_is_gone_is_none_and_its_destruction_a_success(
    client: VastClient, server: VastServer, shape: str
) -> None:
    server.shape = shape
    assert await client.show(4711) is None
    await client.destroy(4711)


async def test_another_server_is_not_taken_for_an_empty_account(clock: VirtualClock, server: VastServer) -> None:
    """Its 404 would look like an instance that is gone."""
    async with VastClient(KEY, f"{server.url}/elsewhere", clock=clock) as client:
        for endpoint in ALL:
            with pytest.raises(Refused):
                await call(client, endpoint)


async def test_a_list_is_read_to_its_end(client: VastClient, server: VastServer) -> None:
    server.vast.offers = [offer(number) for number in range(1, 61)]
    for number in range(1, 61):
        server.vast.rent(number, request(label=str(number)).body())
    found = await client.instances()
    assert [each.label for each in found] == [str(number) for number in range(1, 61)]
    assert server.vast.asked["list"] == 3


async def test_a_list_that_turns_in_circles_is_an_error_and_no_part_of_one(
    client: VastClient, server: VastServer
) -> None:
    page = json.dumps({"instances": [{"id": 1}], "next_token": "again"}).encode()
    server.fail("list", *[Fault(status=200, body=page)] * 2)
    with pytest.raises(Unavailable, match="does not end"):
        await client.instances()


async def test_a_record_that_is_odd_is_kept_and_one_without_id_is_an_error(
    client: VastClient, server: VastServer
) -> None:
    odd = {"id": 5, "label": None, "dph_total": "free", "is_bid": [], "actual_status": "frozen", "new": {}}
    server.fail("list", Fault(status=200, body=json.dumps({"instances": [odd]}).encode()))
    (instance,) = await client.instances()
    assert (instance.id, instance.dph_total, instance.is_bid, instance.actual_status) == (5, None, None, "frozen")
    # No amount of money: one of these in the books makes all sums of the day such.
    for price in (b"NaN", b"Infinity", b"-Infinity"):
        server.fail("list", Fault(status=200, body=b'{"instances": [{"id": 5, "dph_total": %s}]}' % price))
        (instance,) = await client.instances()
        assert instance.dph_total is None

    nameless = json.dumps({"instances": [{"label": "x", "extra_env": [["TOKEN", TOKEN]]}]}).encode()
    server.fail("list", Fault(status=200, body=nameless))
    with pytest.raises(Unavailable, match=r"\(id\)"):
        await client.instances()


async def test_an_offer_that_can_t_be_read_is_counted_and_passed_over(client: VastClient, server: VastServer) -> None:
    server.vast.offers[1]["inet_down_cost"] = None
    page = await call(client, "search")
    assert [each.id for each in page.offers] == [1, 3]
    assert page.unreadable == ("inet_down_cost",)


async def test_requests_to_an_endpoint_wait_for_each_other(client: VastClient, server: VastServer) -> None:
    """The fixture looks at the intervals."""
    await asyncio.gather(*(call(client, endpoint) for endpoint in REPEATED * 3))
    assert set(server.vast.asked.values()) == {3}


async def test_requests_that_come_too_close_are_noticed_by_the_fake(clock: VirtualClock) -> None:
    fake = FakeVast([], clock)
    fake.arrive("destroy", KEY)
    clock.seconds += 2.9
    fake.arrive("destroy", KEY)
    fake.arrive("destroy", "another key")
    assert [violation.endpoint for violation in fake.violations] == ["destroy"]


async def test_a_server_that_is_silent_or_not_there_is_unavailable(clock: VirtualClock) -> None:
    async with Hole() as hole, VastClient(KEY, f"http://127.0.0.1:{hole.port}", clock=clock, timeout_s=0.1) as client:
        with pytest.raises(Unavailable, match="Timeout"):
            await client.credit()
    async with VastClient(KEY, f"http://127.0.0.1:{hole.port}", clock=clock) as client:
        with pytest.raises(Unavailable, match="ConnectError"):
            await client.credit()


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel-größe", "\x00" * 10])
async def test_a_key_that_can_t_be_one_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(ValueError, match="the key") as caught:
        VastClient(key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["console.vast.ai", "ftp://x", "https://me:secret@x", "http://", "https://x?api_key=1"])
async def test_an_address_that_can_t_be_one_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the address"):
        VastClient(KEY, url)


async def test_the_key_and_the_environment_are_nowhere(
    client: VastClient, server: VastServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in logs at their most talkative, errors and their causes, reprs or URLs."""
    caplog.set_level(logging.DEBUG)
    said = [repr(client), str(client), repr(request())]
    with capture_logs() as logs:
        for endpoint in ALL:
            # Only who sends the environment can get it back.
            sent = f"Bearer {KEY}" + (f" {TOKEN}" if endpoint == "rent" else "")
            quoting = json.dumps({"msg": f"bad header {sent}"}).encode()
            for fault in (*(Fault(status=status, body=quoting) for status in (401, 400, 500)), Fault(cut=True)):
                server.fail(endpoint, *[fault] * TRIES)
                try:
                    await call(client, endpoint)
                except Exception as error:
                    while error is not None:
                        said += [str(error), repr(error), repr(getattr(error, "__dict__", {}))]
                        request_of = getattr(error, "_request", None)
                        said.append(repr(request_of and (request_of, request_of.headers)))
                        error = error.__cause__ or error.__context__
    said += [repr(logs), caplog.text, *(seen.target for seen in server.seen)]
    assert not [text for text in said if KEY in text]
    assert not [text for text in said if "instance-key" in text]
    assert not [text for text in said if TOKEN in text]
    assert [text for text in said if "bad header Bearer *** ***" in text]
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}


async def test_an_instance_s_own_key_destroys_it_and_nothing_else(
    client: VastClient, server: VastServer, clock: VirtualClock
) -> None:
    first, second = await client.rent(request(1)), await client.rent(request(2, label="video-api-2"))
    async with VastClient(server.vast.contracts[first.id].key, server.url, clock=clock) as container:
        with pytest.raises(Unauthorized):
            await container.destroy(second.id)
        with pytest.raises(Unauthorized):
            await container.instances()
        await container.destroy(first.id)
    assert [each.id for each in server.vast.alive] == [second.id]


@pytest.mark.parametrize(
    ("scenario", "status", "intended", "message"),
    [
        (Scenario(end="stuck_loading"), "loading", "running", "Pull complete"),
        (Scenario(end="oci_error", pull_s=5), "created", "running", "OCI runtime create failed"),
        (Scenario(end="exits", after_s=10), "exited", "running", ""),
        (Scenario(end="offline", after_s=10), "offline", "running", ""),
        (Scenario(end="outbid", after_s=10), "stopped", "stopped", ""),
    ],
)
async def test_what_becomes_of_a_machine_is_seen(
    client: VastClient, server: VastServer, clock: VirtualClock, scenario: Scenario, status: str, intended: str,
    message: str,
) -> None:  # fmt: skip
    server.vast.scenarios[1001] = scenario
    instance = await client.rent(request())
    assert instance.actual_status is None
    clock.seconds += 100
    seen = await client.show(instance.id)
    assert seen is not None
    assert (seen.actual_status, seen.intended_status) == (status, intended)
    assert message in (seen.status_msg or "")


async def test_the_bill_has_a_meter_for_each_thing(client: VastClient, server: VastServer, clock: VirtualClock) -> None:
    server.vast.scenarios[1001] = Scenario(pull_s=100, pull_bytes=8e9, end="outbid", after_s=500)
    instance = await client.rent(request())
    contract = server.vast.contracts[instance.id]
    contract.bytes_up = 2e9
    clock.seconds = contract.begun + 3600
    await client.destroy(instance.id)
    clock.seconds += 1000
    async with httpx.AsyncClient() as http:
        bill = (await http.get(f"{server.url}/__fake/bill")).json()["9001"]
    assert bill["gpu"] == pytest.approx(0.357 * 600 / 3600)
    assert bill["storage"] == pytest.approx(33 * 0.2 / 730, rel=1e-3)
    assert bill["bandwidth"] == pytest.approx(10 * 0.005)
