import asyncio
import fcntl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What runs in production, and the loop whose transports behave a little differently everywhere."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _addresses(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of the loopback mesh are the same in every run: wait for others on this machine. Within a run, the group is
    for one worker. Whatever becomes of a test, it lets go of them."""
    if request.node.get_closest_marker("xdist_group") is None:
        yield
        return
    with open(Path(tempfile.gettempdir()) / "video-api-test-mesh.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
