"""The role that the service's processes have in the database."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from serve_app.jobs.database import migrate
from serve_app.jobs.role import provide_role
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import completed

SECRET = "a5" * 32

pytestmark = pytest.mark.own_database


def connection(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)


@pytest.fixture
def service_url(database_url: str) -> Iterator[str]:
    url = provide_role(database_url, SECRET)
    yield url
    with connection(database_url) as db:
        db.execute(f"DROP OWNED BY {make_url(url).username}")
        db.execute(f"DROP ROLE {make_url(url).username}")


async def test_the_service_works_with_it(service_url: str, database_url: str) -> None:
    assert service_url != database_url
    engine = create_async_engine(service_url)
    store = JobStore(engine, lease_s=30)
    job_id = await completed(store)
    assert await store.delete(job_id) is not None
    await engine.dispose()
    # A dispatcher that starts brings the schema up: there is nothing for it to do.
    migrate(service_url)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM nodes",
        "UPDATE nodes SET revoked_at = NULL",
        "INSERT INTO nodes (slot) VALUES (2)",
        "UPDATE alembic_version SET version_num = '0'",
        "DROP TABLE jobs",
        "CREATE TABLE mine (id int)",
        "TRUNCATE jobs",
        "CREATE ROLE another SUPERUSER",
        "COPY jobs TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
    ],
)
def test_nothing_else_is_open_to_it(service_url: str, statement: str) -> None:
    with connection(service_url) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(statement)


def test_it_is_made_once_and_kept_up_to_date(service_url: str, database_url: str) -> None:
    with connection(database_url) as db:
        db.execute(f"GRANT SELECT ON nodes TO {make_url(service_url).username}")
    assert provide_role(database_url, "b1" * 32) == service_url.replace(SECRET, "b1" * 32)
    with connection(service_url) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("SELECT * FROM nodes")


def test_an_owner_who_may_make_no_role_shares_its_own(database_url: str) -> None:
    with connection(database_url) as db:
        db.execute("CREATE ROLE plain LOGIN")
        db.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain")
    try:
        plain = make_url(database_url).set(username="plain").render_as_string(hide_password=False)
        with capture_logs() as logs:
            assert provide_role(plain, SECRET) == plain
        assert [line["event"] for line in logs] == ["database.role_shared"]
    finally:
        with connection(database_url) as db:
            db.execute("DROP OWNED BY plain")
            db.execute("DROP ROLE plain")
