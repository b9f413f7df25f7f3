"""Names against a real name server, silent ones above all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest

from serve_app.outbound import resolver as resolver_module
from serve_app.outbound.base import OutboundUnavailable
from serve_app.outbound.resolver import LookupFailed, Resolver, UnknownHost
from tests.fakes.name_server import NameServer
from tests.ports import free_port

NAMES = {"a.test": ["127.0.0.1"], "both.test": ["127.0.0.1", "::1"], "six.test": ["2606:4700::1111"], "none.test": []}


@asynccontextmanager
async def asking(*servers: str, lookup_s: float = 5, queue_s: float = 10) -> AsyncIterator[Resolver]:
    resolver = Resolver(servers, lookup_s=lookup_s, queue_s=queue_s)
    yield resolver
    await resolver.aclose()


async def test_names_have_addresses() -> None:
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        assert await resolver("a.test", "") == [ip_address("127.0.0.1")]
        assert set(await resolver("both.test", "")) == {ip_address("127.0.0.1"), ip_address("::1")}
        assert await resolver("six.test", "") == [ip_address("2606:4700::1111")]


async def test_the_machines_own_names_are_known() -> None:
    """From ``/etc/hosts``: no name server is asked."""
    async with NameServer() as server, asking(server.address) as resolver:
        assert ip_address("127.0.0.1") in await resolver("localhost", "")
    assert not server.asked


@pytest.mark.parametrize(
    ("spelling", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("::1", "::1"),
        ("::ffff:7f00:1", "::ffff:7f00:1"),
        ("10.0.300", "10.0.1.44"),
    ],
)
async def test_numbers_are_addresses_in_any_spelling(spelling: str, address: str) -> None:
    """As the C library reads them; nobody's name server may say something else."""
    async with NameServer({spelling: ["8.8.8.8"]}) as server, asking(server.address) as resolver:
        assert await resolver(spelling, "") == [ip_address(address)]
    assert not server.asked


@pytest.mark.parametrize("name", ["nowhere.test", "none.test", "a..test", "x" * 64 + ".test"])
async def test_no_such_name(name: str) -> None:
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        with pytest.raises(UnknownHost):
            await resolver(name, "")


async def test_names_whose_servers_fail_or_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_SIGN_OF_LIFE_S", 30)
    server = NameServer(silent=["hole.test"], broken=["broken.test"])
    async with server, asking(server.address, lookup_s=0.3) as resolver:
        for name in ("broken.test", "a.hole.test"):
            with pytest.raises(LookupFailed):
                await resolver(name, "")


async def test_a_slow_name_has_time_after_fast_ones() -> None:
    """c-ares goes by how fast the server was before: with few tries it gives up long before our limit."""
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        for n in range(10):
            server.names = {**server.names, f"{n}.test": ["127.0.0.1"]}
            await resolver(f"{n}.test", "")
        server.slow_s = 2
        assert await resolver("a.test", "") == [ip_address("127.0.0.1")]


@pytest.mark.parametrize("silent", [True, False])
async def test_a_name_server_of_ours_that_is_down_is_our_fault(silent: bool) -> None:
    async with NameServer(NAMES, silent=["test", "invalid"]) as server:
        address = server.address if silent else f"127.0.0.1:{free_port()}"
        async with asking(address, lookup_s=0.3) as resolver:
            with pytest.raises(OutboundUnavailable):
                await resolver("a.test", "")
            # And it is not held against the name.
            server.silent = ()
            # Only for silence it was to be short: a busy machine may take longer for an answer.
            resolver._lookup_s = 30
            if silent:
                assert await resolver("a.test", "") == [ip_address("127.0.0.1")]


async def test_hundreds_of_silent_names_delay_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, four of them did for 10 s each: as many as the C library had threads."""
    # None of them is given up before bob has his answer, however slow the machine is.
    monkeypatch.setattr(resolver_module, "_TRIES", 10)
    server = NameServer(NAMES, silent=["hole.test"])
    async with server, asking(server.address, lookup_s=60, queue_s=60) as resolver, asyncio.timeout(30):
        await resolver("both.test", "bob")
        stuck = [asyncio.create_task(resolver(f"{n}.hole.test", "ann")) for n in range(300)]
        async with asyncio.timeout(30):
            while len(server.asked) < 1 + resolver_module._SHARE:  # noqa: ASYNC110 - questions are on their way
                await asyncio.sleep(0.01)
        assert await resolver("a.test", "bob") == [ip_address("127.0.0.1")]
        assert not any(task.done() for task in stuck)
        assert len(server.asked) <= 2 + resolver_module._SHARE
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)


async def test_a_wait_in_our_queue_is_not_the_names_fault() -> None:
    async with NameServer(NAMES, silent=["hole.test"]) as server, asking(server.address, queue_s=0.2) as resolver:
        names = [f"{n}.hole.test" for n in range(resolver_module._SHARE)]
        stuck = [asyncio.create_task(resolver(name, "ann")) for name in names]
        await asyncio.sleep(0)
        with pytest.raises(OutboundUnavailable):
            await resolver("a.test", "ann")
        assert await resolver("a.test", "bob") == [ip_address("127.0.0.1")]
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)


async def test_the_same_question_is_asked_once() -> None:
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        server.slow_s = 0.1
        found = await asyncio.gather(*(resolver("a.test", owner) for owner in ["ann", "bob", ""] * 5))
    assert found == [[ip_address("127.0.0.1")]] * 15
    assert server.asked == {"a.test": 1}


async def test_who_asks_what_another_waits_to_ask_does_not_wait_with_him() -> None:
    async with NameServer(NAMES, silent=["hole.test"]) as server, asking(server.address) as resolver:
        stuck = [asyncio.create_task(resolver(f"{n}.hole.test", "ann")) for n in range(40)]
        behind = asyncio.create_task(resolver("a.test", "ann"))
        await asyncio.sleep(0.1)
        assert await resolver("a.test", "bob") == [ip_address("127.0.0.1")]
        assert not behind.done()
        for task in (*stuck, behind):
            task.cancel()
        await asyncio.wait([*stuck, behind])


async def test_who_gives_up_does_not_spoil_it_for_the_others() -> None:
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        server.slow_s = 0.2
        first = asyncio.create_task(resolver("a.test", "ann"))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(resolver("a.test", "bob"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == [ip_address("127.0.0.1")]


async def test_a_failure_is_remembered_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_SIGN_OF_LIFE_S", 30)
    monkeypatch.setattr(resolver_module, "_REMEMBERED_S", 60)
    async with NameServer(NAMES, silent=["hole.test"]) as server, asking(server.address, lookup_s=0.2) as resolver:
        with pytest.raises(LookupFailed):
            await resolver("hole.test", "ann")
        asked = server.asked["hole.test"]
        with pytest.raises(LookupFailed):
            await resolver("hole.test", "bob")
        assert server.asked["hole.test"] == asked
        monkeypatch.setattr(resolver_module, "_REMEMBERED_S", 0.3)
        with pytest.raises(LookupFailed):
            await resolver("a.hole.test", "ann")
        server.silent = ()
        server.names = {"a.hole.test": ["127.0.0.1"]}
        resolver._lookup_s = 30
        async with asyncio.timeout(30):
            while True:
                with suppress(LookupFailed):
                    assert await resolver("a.hole.test", "ann") == [ip_address("127.0.0.1")]
                    break
                await asyncio.sleep(0.05)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_MOST_REMEMBERED", 10)
    async with NameServer(NAMES) as server, asking(server.address) as resolver:
        for n in range(30):
            with pytest.raises(UnknownHost):
                await resolver(f"{n}.nowhere", "")
        assert len(resolver._failed) == 10
        assert resolver._asked == {}
