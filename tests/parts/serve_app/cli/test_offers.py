"""``video-api offers`` against the fake Vast, over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app
from tests.fakes.vast import KEY, FakeVast, a100, offer
from tests.fakes.vast_server import Fault, VastServer
from tests.parts.serve_app.cli.invocation import parsed

Offers = Callable[..., Awaitable[Result]]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VastServer]:
    odd = [a100(3, gpu_ram=40960), a100(4, verification="unverified", dph_base=0.3), a100(5, hosting_type=0)]
    async with VastServer(FakeVast([a100(1), a100(2, inet_down_cost=0.05), *odd, offer(6)])) as running:
        monkeypatch.setenv("VAST_URL", running.url)
        monkeypatch.setenv("VAST_API_KEY", KEY)
        yield running


@pytest.fixture
def offers() -> Offers:
    async def invoke(*words: str, node_type: str = "gpu_a100") -> Result:
        # Beside the server, which runs in this thread's loop.
        return await asyncio.to_thread(CliRunner().invoke, app, ["offers", "--type", node_type, *words])

    return invoke


async def test_offers_are_ranked_and_the_others_explained(server: VastServer, offers: Offers) -> None:
    result = await offers("--json", "--jobs", "5")
    assert result.exit_code == 0, result.output
    found = parsed(result)
    assert [each["offer_id"] for each in found["kept"]] == [1, 2]
    assert {each["offer_id"]: each["reason"] for each in found["dropped"]} == {
        **{3: "gpu_memory", 4: "unverified_host", 5: "no_datacenter"}
    }
    first = found["kept"][0]
    parts = ("cold_usd", "busy_usd", "idle_usd", "storage_usd", "bandwidth_usd", "risk_usd")
    assert first["total_usd"] == pytest.approx(sum(first[part] for part in parts))
    assert first["usd_per_job"] == pytest.approx(first["total_usd"] / 5)
    # What the search was told of the disk is in the price.
    assert first["usd_per_hour"] == pytest.approx(0.667 + 151 * 0.2 / 730)
    assert server.vast.contracts == {}


async def test_a_person_sees_costs_and_reasons(server: VastServer, offers: Offers) -> None:
    shown = (await offers()).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("1", "2")][:2] == ["1", "2"]
    assert "1          gpu_memory       Its GPU has another amount of memory" in shown


async def test_nothing_that_fits_is_said(server: VastServer, offers: Offers) -> None:
    server.vast.offers = []
    result = await offers()
    assert (result.exit_code, result.stdout.strip()) == (0, "No offer fits.")


async def test_an_offer_that_can_t_be_read_is_counted(server: VastServer, offers: Offers) -> None:
    server.vast.offers[1]["reliability"] = None
    found = parsed(await offers("--json"))
    assert ([each["offer_id"] for each in found["kept"]], found["unreadable"]) == ([1], ["reliability"])
    assert "1 offers could not be read: reliability." in (await offers()).stdout


async def test_the_risk_is_taken_by_whoever_says_so(server: VastServer, offers: Offers) -> None:
    found = parsed(await offers("--trust-any-host", "--json"))
    assert [each["offer_id"] for each in found["kept"]] == [4, 1, 5, 2]


async def test_fitting_ones_alone_are_the_same(server: VastServer, offers: Offers) -> None:
    everything, few = parsed(await offers("--json")), parsed(await offers("--json", "--fitting-only"))
    assert few["kept"] == everything["kept"]
    assert few["dropped"] == []


async def test_machines_can_be_left_out(server: VastServer, offers: Offers) -> None:
    found = parsed(await offers("--json", "--block", "1001"))
    assert [each["offer_id"] for each in found["kept"]] == [2]
    assert "blocked" in {each["reason"] for each in found["dropped"]}


async def test_another_type_has_another_market(server: VastServer, offers: Offers) -> None:
    found = parsed(await offers("--json", node_type="gpu_4090"))
    assert [each["offer_id"] for each in found["kept"]] == [6]


async def test_a_key_in_the_env_file_will_do(
    server: VastServer, offers: Offers, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.delenv("VAST_API_KEY")
    (folder / ".env").write_text(f"VAST_API_KEY={KEY}\n")
    assert (await offers()).exit_code == 0


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [("", 2, "VAST_API_KEY is not set"), ("two words", 2, "the key"), ("wrong-key", 4, "Is VAST_API_KEY right")],
)
async def test_a_key_that_is_missing_or_wrong_is_said(
    server: VastServer, offers: Offers, monkeypatch: pytest.MonkeyPatch, key: str, code: int, said: str
) -> None:
    monkeypatch.setenv("VAST_API_KEY", key)
    result = await offers()
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert not key or key not in result.output


async def test_a_quota_that_is_used_up_is_said(server: VastServer, offers: Offers) -> None:
    server.vast.searches_left = 0
    result = await offers()
    assert result.exit_code == 4
    assert "used up. There are new ones at" in result.stderr


async def test_a_search_that_is_refused_is_said(server: VastServer, offers: Offers) -> None:
    server.fail("search", Fault(status=400, body=b'{"error": "invalid_args"}'))
    result = await offers()
    assert (result.exit_code, "invalid_args" in result.stderr) == (4, True)


async def test_a_type_that_there_is_not_is_a_usage_error(offers: Offers) -> None:
    result = await offers(node_type="gpu_h100")
    assert result.exit_code == 2
    assert "there are gpu_a100, gpu_40gb, gpu_4090" in result.stderr


async def test_nobody_there_is_exit_code_3(server: VastServer, offers: Offers, monkeypatch: pytest.MonkeyPatch) -> None:
    # Told to stay away for longer than anybody waits, so that the test need not wait either.
    server.fail("search", Fault(status=429, body=b"slow down", headers={"Retry_After": "600"}))
    result = await offers()
    assert result.exit_code == 3
    assert "fewer requests" in result.stderr
