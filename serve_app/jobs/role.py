"""The database role of ``Api`` and ``Dispatcher``: the service's own tables and nothing else.

Those processes belong to Ray, where every node of the cluster may run code. What the launcher keeps in the same
database (nodes and their keys, what machines cost) is not theirs to read or to write.
"""

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import make_url

from serve_app.jobs.database import LIVELY
from serve_app.jobs.tables import metadata

log = structlog.get_logger()

_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"


def provide_role(owner_url: str, password: str) -> str:
    """The URL of a role of its own, made or brought up to date; ``owner_url`` itself where that may make none.

    Call it after the migrations, since rights are given by table. Raises psycopg.OperationalError.
    """
    owner = make_url(owner_url)
    # Roles belong to the whole server, which may hold several services.
    role = f"{owner.database or 'video_api'}_service"[:63]
    service_url = owner.set(username=role, password=password).render_as_string(hide_password=False)
    try:
        with psycopg.connect(_plain(owner_url), **LIVELY) as db:
            _create(db, role, password)
            _grant(db, role)
        # Whether the server lets it in is for its administrator to say.
        psycopg.connect(_plain(service_url), **LIVELY).close()
    except psycopg.errors.InsufficientPrivilege as error:
        log.warning("database.role_shared", reason=str(error).strip(), hint="the service runs with DATABASE_URL's role")
        return owner_url
    except psycopg.OperationalError as error:
        if error.sqlstate is None and "password" not in str(error) and "pg_hba" not in str(error):
            raise
        log.warning("database.role_shared", reason="the server does not let the service's own role in", role=role)
        return owner_url
    log.info("database.role", role=role)
    return service_url


def _create(db: psycopg.Connection, role: str, password: str) -> None:
    known = db.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
    verb = sql.SQL("ALTER" if known else "CREATE")
    # Hashed here: what a server is told, it may write into its log.
    hashed = db.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    what = sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {}")
    db.execute(what.format(verb, sql.Identifier(role), sql.Literal(hashed)))


def _grant(db: psycopg.Connection, role: str) -> None:
    name = sql.Identifier(role)
    tables = sql.SQL(", ").join(sql.Identifier(table.name) for table in metadata.sorted_tables)
    db.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
    db.execute(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(_RIGHTS), tables, name))
    db.execute(sql.SQL("GRANT SELECT ON alembic_version TO {}").format(name))
    for table in metadata.sorted_tables:
        for column in table.primary_key:
            sequence = db.execute("SELECT pg_get_serial_sequence(%s, %s)", (table.name, column.name)).fetchone()
            if sequence is not None and sequence[0] is not None:
                db.execute(sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.SQL(sequence[0]), name))


def _plain(url: str) -> str:
    return url.replace("+psycopg", "", 1)
