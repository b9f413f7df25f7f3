"""The role that the service's processes have in the database."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from cluster.head.leader import leading
from serve_app.jobs.database import migrate
from serve_app.jobs.role import provide_role, shut_out
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
        "SELECT * FROM rentals",
        "UPDATE fleet_terms SET term = 0",
        "INSERT INTO node_costs (label) VALUES ('x')",
        "SELECT * FROM node_bills",
        "INSERT INTO outlooks (deployment, start_s) VALUES ('ltx2', 1)",
        "UPDATE outlooks SET code = NULL, message = NULL",
        "DELETE FROM outlooks",
        "SELECT * FROM outlooks FOR SHARE",
        "BEGIN; LOCK TABLE outlooks IN ROW SHARE MODE",
        "BEGIN; LOCK TABLE job_costs IN SHARE MODE",
        "BEGIN; LOCK TABLE fleet_totals IN SHARE MODE",
        "BEGIN; LOCK TABLE rentals IN ACCESS SHARE MODE",
        "BEGIN; LOCK TABLE fleet_terms IN ACCESS SHARE MODE",
        "UPDATE nodes SET revoked_at = NULL",
        "INSERT INTO nodes (slot) VALUES (2)",
        "UPDATE alembic_version SET version_num = '0'",
        "DROP TABLE jobs",
        "CREATE TABLE mine (id int)",
        "CREATE TEMP TABLE mine (id int)",
        "BEGIN; LOCK TABLE nodes IN ACCESS SHARE MODE",
        "BEGIN; LOCK TABLE leadership IN ACCESS SHARE MODE",
        "TRUNCATE jobs",
        "CREATE ROLE another SUPERUSER",
        "COPY jobs TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
    ],
)
async def test_nothing_else_is_open_to_it(service_url: str, database_url: str, statement: str) -> None:
    async with leading(database_url):
        pass
    with connection(service_url) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(statement)


def test_it_is_made_once_and_kept_up_to_date(service_url: str, database_url: str) -> None:
    with connection(database_url) as db:
        db.execute(f"GRANT SELECT ON nodes TO {make_url(service_url).username}")
    assert provide_role(database_url, "b1" * 32) == service_url.replace(SECRET, "b1" * 32)
    with connection(service_url) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("SELECT * FROM nodes")


def test_what_everybody_could_make_in_older_versions_it_can_t(service_url: str, database_url: str) -> None:
    with connection(database_url) as db:
        db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    provide_role(database_url, SECRET)
    with connection(service_url) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("CREATE FUNCTION now(text) RETURNS text LANGUAGE sql AS 'SELECT 1'")


def test_nobody_has_it_while_the_next_head_migrates(service_url: str, database_url: str) -> None:
    """A session of before could hold locks that a migration waits for."""
    with connection(service_url) as before:
        before.execute("SELECT pg_advisory_lock(1)")
        shut_out(database_url)
        with pytest.raises(psycopg.OperationalError):
            before.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        connection(service_url)
    provide_role(database_url, SECRET)
    connection(service_url).close()


def test_there_is_nobody_to_shut_out_at_first(database_url: str) -> None:
    shut_out(database_url)


def test_nothing_that_it_does_to_itself_gives_the_service_more(service_url: str, database_url: str) -> None:
    """Its password and defaults are its own to set. A role that can't log in was taken for a server that lets it not
    in, and the service got the owner's instead."""
    name, database = make_url(service_url).username, make_url(service_url).database
    with connection(service_url) as db:
        for where in ("", f"IN DATABASE {database}"):
            db.execute(f"ALTER ROLE {name} {where} SET local_preload_libraries = 'password'")
        db.execute(f"ALTER ROLE {name} PASSWORD 'its own'")
    shut_out(database_url)
    assert provide_role(database_url, SECRET) == service_url
    connection(service_url).close()


@pytest.fixture
def owner_url(database_url: str) -> Iterator[str]:
    """Of an owner as platforms give one: no superuser, but one who may make roles."""
    name = make_url(database_url).database
    with connection(database_url) as db:
        db.execute("CREATE ROLE landlord LOGIN CREATEROLE")
        db.execute(f"ALTER DATABASE {name} OWNER TO landlord")
        relations = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' UNION SELECT viewname FROM pg_views"
        for (table,) in db.execute(f"{relations} WHERE schemaname = 'public'").fetchall():
            db.execute(f"ALTER TABLE {table} OWNER TO landlord")
    yield make_url(database_url).set(username="landlord").render_as_string(hide_password=False)
    with connection(database_url) as db:
        db.execute(f"ALTER DATABASE {name} OWNER TO postgres")
        db.execute(f"DROP OWNED BY landlord, {name}_service CASCADE")
        db.execute(f"DROP ROLE {name}_service, landlord")


def test_an_owner_who_is_no_superuser(owner_url: str, database_url: str) -> None:
    """Nor has he the schema, which everybody may write to in older versions."""
    with connection(database_url) as db:
        db.execute("ALTER SCHEMA public OWNER TO postgres")
        db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    service_url = provide_role(owner_url, SECRET)
    assert service_url != owner_url
    with connection(service_url) as before:
        before.execute("CREATE TABLE its_own ()")
        shut_out(owner_url)
        with pytest.raises(psycopg.OperationalError):
            before.execute("SELECT 1")
    assert provide_role(owner_url, SECRET) == service_url
    connection(service_url).close()


@pytest.mark.parametrize("more", ["ALTER ROLE {} CREATEDB", "GRANT pg_monitor TO {}"])
def test_a_role_of_that_name_that_may_do_more_is_somebody_else_s(
    service_url: str, database_url: str, more: str
) -> None:
    with connection(database_url) as db:
        db.execute(more.format(make_url(service_url).username))
    with connection(service_url) as theirs, capture_logs() as logs:
        shut_out(database_url)
        assert provide_role(database_url, "b1" * 32) == database_url
        theirs.execute("SELECT 1")
    assert [line["event"] for line in logs] == ["database.role_shared"]


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
