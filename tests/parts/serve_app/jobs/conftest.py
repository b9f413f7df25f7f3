import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.store import JobStore


@pytest.fixture
def store(engine: AsyncEngine) -> JobStore:
    return JobStore(engine, lease_s=3600)
