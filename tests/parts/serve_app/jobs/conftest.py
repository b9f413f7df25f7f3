from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore


@pytest.fixture
async def store(engine: AsyncEngine) -> AsyncIterator[JobStore]:
    store = JobStore(engine, lease_s=3600)
    yield store
    await store.aclose()


@pytest.fixture
async def reads(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobReads]:
    """Which look at the lines each time anew."""
    monkeypatch.setattr("serve_app.jobs.pace.LINE_KEPT_S", 0)
    monkeypatch.setattr("serve_app.jobs.pace.KEPT_S", 0)
    reads = JobReads(engine)
    yield reads
    await reads.aclose()
