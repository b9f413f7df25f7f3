from collections.abc import AsyncIterator

import pytest

from cluster.vast.client import VastClient
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import KEY, FakeVast, offer
from tests.fakes.vast_server import VastServer


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def server(clock: VirtualClock) -> AsyncIterator[VastServer]:
    """With three offers. Whatever a test does, no two requests may come closer to each other than Vast allows."""
    fake = FakeVast([offer(number) for number in (1, 2, 3)], clock)
    async with VastServer(fake) as running:
        yield running
    assert fake.violations == []


@pytest.fixture
async def client(server: VastServer, clock: VirtualClock) -> AsyncIterator[VastClient]:
    async with VastClient(KEY, server.url, clock=clock) as client:
        yield client
