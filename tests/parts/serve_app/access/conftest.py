import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access.key_ring import KeyRing
from serve_app.access.key_store import KeyStore
from tests.unit.serve_app.access.test_rate import Clock

SECRET = b"secret of the test, not in the database"


@pytest.fixture
def keys(engine: AsyncEngine) -> KeyStore:
    return KeyStore(engine, SECRET)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(keys: KeyStore, database_url: str, clock: Clock) -> KeyRing:
    return KeyRing(keys, database_url, clock)
