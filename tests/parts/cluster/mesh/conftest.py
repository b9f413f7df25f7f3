import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What runs in production, and the loop whose transports behave a little differently everywhere."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
