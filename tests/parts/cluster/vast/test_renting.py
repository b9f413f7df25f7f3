"""Whatever happens to the answer: afterwards there is one machine that the caller knows of, or none."""

import json

import pytest

from cluster.vast.client import VastClient
from cluster.vast.errors import (
    Ambiguous,
    BadRental,
    InstanceGone,
    OfferGone,
    RateLimited,
    Refused,
    Unavailable,
    WrongTerms,
)
from cluster.vast.exchange import TRIES
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import KEY
from tests.fakes.vast_server import SHAPES, Fault, VastServer, too_many
from tests.parts.cluster.vast.requests import request

#: The contract was made, and the answer does not say so.
UNCLEAR = [
    Fault(status=500, worked=True),
    Fault(status=502, body=b"<html>", worked=True),
    Fault(cut=True, worked=True),
    Fault(status=200, body=b"<html>", worked=True),
    Fault(status=200, body=b'{"success": true}', worked=True),
]


@pytest.mark.parametrize("fault", UNCLEAR)
@pytest.mark.parametrize("omitted_s", [0, 20])
async def test_an_answer_that_says_nothing_is_resolved_by_the_label(
    client: VastClient, server: VastServer, fault: Fault, omitted_s: float
) -> None:
    await client.rent(request(2, label="another"))
    server.vast.list_omits_s = omitted_s
    server.fail("rent", fault)
    instance = await client.rent(request())
    assert (instance.id, instance.label) == (9002, "video-api-1")
    assert (len(server.vast.contracts), server.vast.asked["rent"]) == (2, 2)


async def test_a_time_out_is_resolved_by_the_label(server: VastServer, clock: VirtualClock) -> None:
    server.fail("rent", Fault(silent=True, worked=True))
    async with VastClient(KEY, server.url, clock=clock, timeout_s=2) as impatient:
        assert (await impatient.rent(request())).id == 9001
    assert server.vast.asked["rent"] == 1


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=500, body=b"no_such_ask"), Fault(cut=True)])
async def test_what_never_shows_up_stays_ambiguous_and_is_not_rented_again(
    client: VastClient, server: VastServer, clock: VirtualClock, fault: Fault
) -> None:
    server.fail("rent", fault)
    with pytest.raises(Ambiguous, match="video-api-1") as caught:
        await client.rent(request())
    assert caught.value.label == "video-api-1"
    assert server.vast.asked["rent"] == 1
    assert clock.seconds >= 60


async def test_a_list_that_fails_meanwhile_is_asked_again(client: VastClient, server: VastServer) -> None:
    server.fail("rent", Fault(worked=True))
    server.fail("list", *[Fault()] * (TRIES + 1))
    assert (await client.rent(request())).id == 9001


async def test_a_list_that_may_not_be_seen_leaves_it_ambiguous(client: VastClient, server: VastServer) -> None:
    server.fail("rent", Fault(worked=True))
    server.fail("list", Fault(status=401))
    with pytest.raises(Ambiguous):
        await client.rent(request())


async def test_two_with_one_label_are_not_told_apart(client: VastClient, server: VastServer) -> None:
    await client.rent(request(2))
    server.fail("rent", Fault(worked=True))
    with pytest.raises(Ambiguous, match="2 instances"):
        await client.rent(request())


async def test_what_could_not_be_sent_was_not_rented(clock: VirtualClock, server: VastServer) -> None:
    async with VastServer(server.vast) as gone:
        url = gone.url
    async with VastClient(KEY, url, clock=clock) as client:
        with pytest.raises(Unavailable, match="ConnectError"):
            await client.rent(request())
    assert server.vast.asked["list"] == 0


async def test_only_429_is_repeated(client: VastClient, server: VastServer, clock: VirtualClock) -> None:
    server.fail("rent", too_many(), too_many("3"))
    assert (await client.rent(request())).id == 9001
    assert server.vast.asked["rent"] == 3
    # Vast punishes who comes too early.
    assert clock.seconds >= 24


async def test_429_without_end_is_given_up(client: VastClient, server: VastServer) -> None:
    server.fail("rent", *[too_many()] * TRIES)
    with pytest.raises(RateLimited):
        await client.rent(request())
    assert server.vast.asked["rent"] == TRIES
    assert server.vast.contracts == {}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [410, 404, 400, 200])
async def test_an_offer_that_somebody_has_is_gone(
    client: VastClient, server: VastServer, shape: str, status: int
) -> None:
    server.shape, server.vast.gone_status = shape, status
    await client.rent(request())
    with pytest.raises(OfferGone) as caught:
        await client.rent(request(label="video-api-2"))
    assert caught.value.offer_id == 1
    assert len(server.vast.contracts) == 1


async def test_a_host_s_own_machine_is_refused_and_the_key_not_blamed(client: VastClient, server: VastServer) -> None:
    said = json.dumps({"success": False, "error": "own_machine", "msg": "You can not rent your own machine"}).encode()
    server.fail("rent", Fault(status=403, body=said))
    with pytest.raises(Refused, match="own machine"):
        await client.rent(request())


async def test_a_bid_that_is_too_low_leaves_nothing(client: VastClient, server: VastServer) -> None:
    """Vast says no, and makes a stopped instance all the same."""
    with pytest.raises(BadRental, match="invalid_price") as caught:
        await client.rent(request(bid_usd=0.1))
    assert (caught.value.instance_id, caught.value.destroyed) == (9001, True)
    assert server.vast.alive == []


async def test_a_bid_is_rented_as_one(client: VastClient, server: VastServer) -> None:
    instance = await client.rent(request(bid_usd=0.2))
    assert instance.is_bid is True
    assert instance.dph_total == pytest.approx(0.2 + 33 * 0.2 / 730)


async def test_a_bid_that_was_silently_rented_on_demand_is_destroyed(client: VastClient, server: VastServer) -> None:
    server.vast.overlooks_bids = True
    with pytest.raises(WrongTerms, match=r"on demand where a bid was made\. It was destroyed") as caught:
        await client.rent(request(bid_usd=0.2, most_usd_per_hour=1))
    assert caught.value.destroyed
    assert server.vast.alive == []


@pytest.mark.parametrize("fault", [None, *UNCLEAR])
async def test_a_machine_that_is_dearer_than_agreed_is_destroyed(
    client: VastClient, server: VastServer, fault: Fault | None
) -> None:
    if fault is not None:
        server.fail("rent", fault)
    with pytest.raises(WrongTerms, match=r"0\.3660 dollars per hour where 0\.3600 were"):
        await client.rent(request(most_usd_per_hour=0.36))
    assert server.vast.alive == []


async def test_a_bad_machine_that_can_t_be_destroyed_is_told_as_such(client: VastClient, server: VastServer) -> None:
    server.fail("destroy", *[Fault()] * TRIES)
    with pytest.raises(WrongTerms, match="COULD NOT BE DESTROYED") as caught:
        await client.rent(request(most_usd_per_hour=0.36))
    assert not caught.value.destroyed
    assert [each.id for each in server.vast.alive] == [caught.value.instance_id]


async def test_a_fresh_instance_that_is_not_shown_yet_is_waited_for(client: VastClient, server: VastServer) -> None:
    server.vast.show_omits_s = 20
    assert (await client.rent(request())).dph_total is not None


async def test_one_that_is_never_shown_is_destroyed(client: VastClient, server: VastServer) -> None:
    server.vast.show_omits_s = 1000
    with pytest.raises(InstanceGone):
        await client.rent(request())
    assert server.vast.alive == []


async def test_one_that_may_not_be_looked_at_is_destroyed(client: VastClient, server: VastServer) -> None:
    server.fail("show", Fault(status=401))
    with pytest.raises(BadRental, match="could not be looked at") as caught:
        await client.rent(request())
    assert caught.value.destroyed
    assert server.vast.alive == []
