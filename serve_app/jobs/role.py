"""The database role of ``Api`` and ``Dispatcher``: the service's own tables, and to read what is said to it.

Those processes belong to Ray, where every node of the cluster may run code. What the launcher keeps in the same
database (nodes and their keys, who leads, what machines cost) is not theirs to read, to write or to lock.

So the role may be in hostile hands. A role may set its own password and defaults, and hold locks; nothing of that may
reach the next head, least of all be taken for a server that lets the role not in: then the service gets the owner's.
"""

import contextlib
import time

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import make_url

from serve_app.jobs.database import LIVELY
from serve_app.jobs.tables import RIGHTS, VIEWS, metadata

log = structlog.get_logger()

#: Seconds for sessions to end that were told to.
_ENDING_S = 10.0

#: Whether a role is one to be taken over: it may do nothing but log in.
_PLAIN = """
SELECT NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
    AND NOT EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
FROM pg_roles r WHERE rolname = %s
"""


def shut_out(owner_url: str) -> None:
    """End the role's sessions, of an earlier head's processes, and let none begin until :func:`provide_role`.

    For a head that leads, before the migrations, which those could keep waiting. Raises psycopg.OperationalError.
    """
    role = _name(owner_url)
    with psycopg.connect(_plain_url(owner_url), autocommit=True, **LIVELY) as db:
        if not _is_plain(db, role):
            return
        try:
            db.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role)))
            _belong(db, role)
            _end_sessions(db, role)
        except psycopg.errors.InsufficientPrivilege as error:
            log.warning("database.role_not_shut_out", role=role, reason=str(error).strip())


def provide_role(owner_url: str, password: str) -> str:
    """The URL of a role of its own, made or brought up to date; ``owner_url`` itself where that may make none.

    Call it after the migrations, since rights are given by table. Raises psycopg.OperationalError.
    """
    role = _name(owner_url)
    service_url = make_url(owner_url).set(username=role, password=password).render_as_string(hide_password=False)
    try:
        with psycopg.connect(_plain_url(owner_url), **LIVELY) as db:
            known = _is_plain(db, role)
            if known is False:
                return _shared(owner_url, f"there is a role {role} that may do more than log in")
            _create(db, role, password, "ALTER" if known else "CREATE")
            _grant(db, role)
    except psycopg.errors.InsufficientPrivilege as error:
        return _shared(owner_url, str(error).strip())
    try:
        # Whether the server lets it in is for its administrator to say.
        psycopg.connect(_plain_url(service_url), **LIVELY).close()
    except psycopg.OperationalError as error:
        if "password" not in str(error) and "pg_hba" not in str(error):
            raise
        return _shared(owner_url, f"the server does not let the service's own role {role} in")
    log.info("database.role", role=role)
    return service_url


def _shared(owner_url: str, reason: str) -> str:
    log.warning("database.role_shared", reason=reason, hint="the service runs with DATABASE_URL's role")
    return owner_url


def _name(owner_url: str) -> str:
    # Roles belong to the whole server, which may hold several services.
    return f"{make_url(owner_url).database or 'video_api'}_service"[:63]


def _is_plain(db: psycopg.Connection, role: str) -> bool | None:
    """None if there is no such role."""
    row = db.execute(_PLAIN, (role,)).fetchone()
    return bool(row[0]) if row is not None else None


def _belong(db: psycopg.Connection, role: str) -> None:
    """Who has a role's rights may end its sessions and take back what it has made. Making it is not enough."""
    row = db.execute("SELECT pg_has_role(%s, 'USAGE')", (role,)).fetchone()
    if row is not None and not row[0]:
        db.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


def _end_sessions(db: psycopg.Connection, role: str) -> None:
    give_up = time.monotonic() + _ENDING_S
    while db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,)).fetchall():
        if time.monotonic() > give_up:
            raise psycopg.OperationalError(f"sessions of {role} do not end")
        time.sleep(0.05)


def _create(db: psycopg.Connection, role: str, password: str, verb: str) -> None:
    # Hashed here: what a server is told, it may write into its log.
    hashed = db.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    # It is plain, or plain by default: an owner who is no superuser may not say so of one that there is.
    what = sql.SQL("{} ROLE {} LOGIN PASSWORD {}")
    name = sql.Identifier(role)
    db.execute(what.format(sql.SQL(verb), name, sql.Literal(hashed)))
    _belong(db, role)
    for where in (sql.SQL(""), sql.SQL("IN DATABASE {}").format(sql.Identifier(db.info.dbname))):
        db.execute(sql.SQL("ALTER ROLE {} {} RESET ALL").format(name, where))


def _grant(db: psycopg.Connection, role: str) -> None:
    name = sql.Identifier(role)
    db.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
    rights = {table.name: str(table.info.get("rights", RIGHTS)) for table in metadata.sorted_tables}
    for relation, allowed in {**rights, **dict.fromkeys((*VIEWS, "alembic_version"), "SELECT")}.items():
        db.execute(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(allowed), sql.Identifier(relation), name))
    for table in metadata.sorted_tables:
        for column in table.primary_key:
            sequence = db.execute("SELECT pg_get_serial_sequence(%s, %s)", (table.name, column.name)).fetchone()
            if sequence is not None and sequence[0] is not None:
                db.execute(sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.SQL(sequence[0]), name))
    # What everybody has until it is taken back: before PostgreSQL 15, to make things in the schema that the owner
    # works in. Whose schema and database they are is not said.
    database = sql.Identifier(db.info.dbname)
    for everybody in (sql.SQL("CREATE ON SCHEMA public"), sql.SQL("TEMPORARY ON DATABASE {}").format(database)):
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute(sql.SQL("REVOKE {} FROM PUBLIC").format(everybody))


def _plain_url(url: str) -> str:
    return url.replace("+psycopg", "", 1)
