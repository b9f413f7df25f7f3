"""One head at a time: who holds an advisory lock of PostgreSQL acts, the others wait.

A platform starts the new head before it stops the old one. Two Ray heads over one Redis, or two that rent machines,
would undo each other's work.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import psycopg
import structlog

log = structlog.get_logger()

#: Key of the lock.
LEADING = 0x68656164
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
        # Closing the session is what frees the lock.
        await connection.close()


async def _acquire(url: str, on_wait: Callable[[bool], None]) -> psycopg.AsyncConnection:
    said: str | None = None
    while True:
        connection: psycopg.AsyncConnection | None = None
        try:
            connection = await psycopg.AsyncConnection.connect(
                url, autocommit=True, connect_timeout=10, keepalives_idle=5, keepalives_interval=5, keepalives_count=3
            )
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADING,))).fetchone()
            if row is not None and row[0]:
                return connection
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


async def _watch(connection: psycopg.AsyncConnection) -> NoReturn:
    while True:
        await asyncio.sleep(CHECK_S)
        try:
            async with asyncio.timeout(SILENCE_S):
                await connection.execute("SELECT 1")
        except (psycopg.Error, TimeoutError) as error:
            raise LeadershipLost(f"the lock's connection is gone: {error}".strip()) from error
