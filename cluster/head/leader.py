"""One head at a time: who holds a lock of PostgreSQL acts, the others wait.

A platform starts the new head before it stops the old one. Two Ray heads over one Redis, or two that rent machines,
would undo each other's work.

It is the lock of a view of the launcher's own. An advisory lock is anybody's who can connect: code on Ray could keep it
with the service's role (``serve_app/jobs/role.py``), and no head would ever lead again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import psycopg
import structlog

log = structlog.get_logger()

#: The view. It has no rows that a vacuum would have to look at, as a table has even when it is empty.
LEADING = "leadership"
#: The transaction stays open for as long as the head leads. This mode takes no transaction id and no snapshot, so what
#: others have deleted meanwhile can be cleaned away.
_LOCK = f"BEGIN ISOLATION LEVEL READ COMMITTED; LOCK TABLE {LEADING} IN EXCLUSIVE MODE NOWAIT"
#: What the server may limit, in versions that can.
_UNLIMITED = (
    "SELECT set_config(name, '0', false) FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
#: Seconds between two attempts to become, or checks to still be, the leader.
POLL_S = 1.0
CHECK_S = 5.0
#: A database that answers no check for so long has most likely dropped us.
SILENCE_S = 15.0


class LeadershipLost(Exception):
    """The connection that holds the lock is gone; another head may act already."""


class Leadership:
    """The lock, held. :attr:`lost` ends with :class:`LeadershipLost` when it isn't any more."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self.lost: asyncio.Task[NoReturn] = asyncio.create_task(_watch(connection))


@asynccontextmanager
async def leading(database_url: str, on_wait: Callable[[bool], None] = lambda asked: None) -> AsyncIterator[Leadership]:
    """Wait until this process leads. ``on_wait(asked)`` says at each failed attempt whether the database answered."""
    url = database_url.replace("+psycopg", "", 1)
    connection = await _acquire(url, on_wait)
    try:
        leadership = Leadership(connection)
        log.info("head.leads")
        try:
            yield leadership
        finally:
            leadership.lost.cancel()
            await asyncio.gather(leadership.lost, return_exceptions=True)
    finally:
        # The end of the session is what frees the lock.
        await connection.close()


async def _acquire(url: str, on_wait: Callable[[bool], None]) -> psycopg.AsyncConnection:
    said: str | None = None
    while True:
        connection: psycopg.AsyncConnection | None = None
        try:
            connection = await psycopg.AsyncConnection.connect(
                url, autocommit=True, connect_timeout=10, keepalives_idle=5, keepalives_interval=5, keepalives_count=3
            )
            await _lock(connection)
            return connection
        except psycopg.errors.LockNotAvailable:
            reason, asked = "another head leads", True
        except psycopg.Error as error:
            reason, asked = f"the database does not answer: {error}".strip(), False
        except BaseException:
            if connection is not None:
                await connection.close()
            raise
        if connection is not None:
            await connection.close()
        on_wait(asked)
        if reason != said:
            log.info("head.waits", reason=reason)
            said = reason
        await asyncio.sleep(POLL_S)


async def _lock(connection: psycopg.AsyncConnection) -> None:
    """Raises LockNotAvailable if another has it."""
    await connection.execute(_UNLIMITED)
    try:
        await connection.execute(_LOCK)
    except psycopg.errors.UndefinedTable:
        # The first head of all, before the migrations; or the first two at once.
        await connection.execute("ROLLBACK")
        with contextlib.suppress(psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
            await connection.execute(f"CREATE VIEW {LEADING} AS SELECT 1 AS head")
        await connection.execute(_LOCK)


async def _watch(connection: psycopg.AsyncConnection) -> NoReturn:
    while True:
        await asyncio.sleep(CHECK_S)
        try:
            async with asyncio.timeout(SILENCE_S):
                await connection.execute("SELECT 1")
        except (psycopg.Error, TimeoutError) as error:
            raise LeadershipLost(f"the lock's connection is gone: {error}".strip()) from error
