"""Vast.ai in the fleet's words."""

from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster.fleet.provider import (
    AccountRefused,
    Misrented,
    OfferGone,
    Order,
    ProviderError,
    Status,
    Unclear,
)
from cluster.fleet.waiting import Reason
from cluster.vast.client import VastClient
from cluster.vast.provider import MARKET_S, VastProvider
from tests.fakes.vast import KEY, FakeVast, Scenario, offer
from tests.fakes.vast_server import Fault, VastServer
from tests.fakes.vast_transport import connect
from tests.fakes.virtual_time import LoopClock, virtual
from tests.fakes.world import IMAGE_BYTES, KIND, TYPE, WEIGHT_BYTES


class Rig:
    def __init__(self, *, spot_usd: float | None = None, **changes: Any) -> None:
        self.clock = LoopClock()
        self.vast = FakeVast([offer(number, **changes) for number in (1, 2, 3)], self.clock)
        self.server = VastServer(self.vast)
        client = connect(VastClient(KEY, "http://vast.test", clock=self.clock), self.server)
        kind = replace(KIND, node=replace(KIND.node, spot_usd_per_hour=spot_usd))
        self.provider = VastProvider(client, {TYPE: kind}, clock=self.clock)

    async def order(self, label: str = "test-1") -> Order:
        best = (await self.provider.candidates(TYPE, ()))[0]
        return Order(label=label, node_type=TYPE, candidate=best, env={"TOKEN": "secret-of-the-test"})


@virtual
async def test_candidates_come_by_whole_cost_with_the_prices_that_will_be_billed() -> None:
    rig = Rig()
    # A dearer GPU behind a line that costs nothing.
    rig.vast.offers[1].update(dph_base=0.36, inet_down_cost=0.0)
    rig.vast.offers[2].update(inet_down=100.0)
    first, second = await rig.provider.candidates(TYPE, ())
    assert (first.offer, first.host, second.offer) == ("2", "1002", "1")
    assert first.terms.gpu_usd_per_hour == pytest.approx(0.36)
    assert first.terms.storage_usd_per_hour == pytest.approx(KIND.node.disk_gb * 0.2 / 730)
    assert (first.line_mbps, second.line_mbps) == (1800, 1800)
    assert (first.image_bytes, first.start_bytes) == (IMAGE_BYTES, IMAGE_BYTES + WEIGHT_BYTES)
    assert [each.offer for each in await rig.provider.candidates(TYPE, {"1002"})] == ["1"]
    assert await rig.provider.candidates("gpu_b300", ()) == ()


@virtual
async def test_one_look_at_the_market_serves_for_a_minute() -> None:
    rig = Rig()
    for seconds, searches in ((0, 1), (MARKET_S - 5, 1), (10, 2)):
        await rig.clock.sleep(seconds)
        await rig.provider.candidates(TYPE, ())
        assert rig.vast.asked["search"] == searches


@virtual
async def test_what_is_rented_is_what_the_node_type_asks_for() -> None:
    rig = Rig()
    order = await rig.order()
    machine = await rig.provider.rent(order)
    (contract,) = rig.vast.alive
    assert (machine.id, machine.label) == ("9001", "test-1")
    assert machine.begun_at is not None
    assert machine.begun_at.timestamp() == contract.start_date
    assert machine.usd_per_hour == pytest.approx(order.candidate.terms.usd_per_hour)
    assert (contract.body["image"], contract.body["disk"]) == (KIND.image, KIND.node.disk_gb)
    assert contract.body["env"] == order.env
    assert "secret-of-the-test" not in repr(order)
    # Whatever comes of it, it is tried once.
    assert order.candidate.offer not in {each.offer for each in await rig.provider.candidates(TYPE, ())}
    await rig.provider.destroy(machine.id)
    assert rig.vast.alive == []
    assert await rig.provider.machines() == []
    assert await rig.provider.credit() == pytest.approx(25, abs=0.01)


@virtual
async def test_a_bid_is_made_where_it_is_worth_it_and_what_is_rented_says_so() -> None:
    rig = Rig(spot_usd=0.2)
    candidates = await rig.provider.candidates(TYPE, ())
    assert [(each.offer, each.bid) for each in candidates] == [(n, bid) for bid in (True, False) for n in "123"]
    machine = await rig.provider.rent(await rig.order())
    (contract,) = rig.vast.alive
    assert (machine.bid, contract.is_bid, contract.body["price"]) == (True, True, pytest.approx(0.18))
    assert machine.usd_per_hour == pytest.approx(candidates[0].terms.usd_per_hour)
    # Neither as a bid nor on demand.
    assert {each.offer for each in await rig.provider.candidates(TYPE, ())} == {"2", "3"}
    assert rig.vast.asked["search"] == 2


@pytest.mark.parametrize(
    ("plan", "after_s", "status"),
    [
        (Scenario(), 0, Status.LOADING),
        (Scenario(pull_s=60), 30, Status.LOADING),
        (Scenario(end="stuck_loading"), 5000, Status.LOADING),
        (Scenario(), 10, Status.RUNNING),
        (Scenario(end="oci_error"), 10, Status.BROKEN),
        (Scenario(end="exits"), 10, Status.EXITED),
        (Scenario(end="offline"), 10, Status.OFFLINE),
        (Scenario(end="outbid"), 10, Status.OUTBID),
    ],
)
@virtual
async def test_what_a_machine_is_like(plan: Scenario, after_s: float, status: Status) -> None:
    rig = Rig()
    rig.vast.scenarios = dict.fromkeys((1001, 1002, 1003), plan)
    order = await rig.order()
    rig.vast.rent(1, {**_body(), "label": "another"})
    await rig.clock.sleep(after_s)
    (machine,) = await rig.provider.machines()
    assert (machine.status, machine.label) == (status, "another")
    assert order.candidate.host == "1001"


def _body() -> dict[str, Any]:
    return {"client_id": "me", "image": "x", "disk": 33, "runtype": "args", "env": {}}


@virtual
async def test_a_word_that_nobody_knows_is_told_once() -> None:
    rig = Rig()
    body = b'{"success": true, "instances": [{"id": 1, "actual_status": "frozen", "start_date": 1e30}]}'
    rig.server.fail("list", Fault(status=200, body=body), Fault(status=200, body=body))
    with capture_logs() as logs:
        for _ in range(2):
            (machine,) = await rig.provider.machines()
    assert (machine.status, machine.begun_at, machine.label) == (Status.LOADING, None, "")
    assert [each["status"] for each in logs if each["event"] == "vast.unknown_status"] == ["frozen"]


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (Fault(status=410, body=b'{"error": "no_such_ask"}'), OfferGone, Reason.PROVIDER),
        (Fault(status=400, body=b'{"error": "insufficient_credit"}'), AccountRefused, Reason.NO_CREDIT),
        (Fault(status=401, body=b'{"error": "auth_error"}'), AccountRefused, Reason.NOT_ALLOWED),
        (Fault(status=400, body=b'{"error": "invalid_args"}'), AccountRefused, Reason.REFUSED),
        (Fault(cut=True), Unclear, Reason.PROVIDER),
        (Fault(status=429, headers={"Retry_After": "600"}), ProviderError, Reason.PROVIDER),
        (Fault(status=400, body=b'{"error": "invalid_price", "new_contract": 9001}'), Misrented, Reason.PROVIDER),
    ],
)
@virtual
async def test_how_renting_fails(fault: Fault, kind: type[ProviderError], reason: Reason) -> None:
    rig = Rig()
    rig.server.fail("rent", fault)
    with pytest.raises(kind) as caught:
        await rig.provider.rent(await rig.order())
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    if kind is ProviderError:
        assert caught.value.retry_after_s == 600
    if isinstance(caught.value, Misrented):
        assert (caught.value.instance, caught.value.destroyed) == ("9001", True)


@virtual
async def test_what_can_t_be_asked_for_is_refused_before_it_is_sent() -> None:
    rig = Rig()
    order = await rig.order("x" * 300)
    with pytest.raises(AccountRefused, match="label"):
        await rig.provider.rent(order)
    assert rig.vast.asked["rent"] == 0
