"""Connections: one SQLAlchemy engine per process, migrations, and the NOTIFY channels: what wakes the dispatcher, and
what has changed."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, func
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

#: A notification's payload is ``work`` (something to claim or deliver) or ``stop:<job id>`` (let go of its call).
CHANNEL = "video_api_jobs"
#: What a client can see has changed: ``<job id> <version>``, or ``<job id> <version> <model>`` where the line of that
#: model has moved as well. Sent by triggers of migration 0012.
CHANGES = "video_api_changes"

#: A server that is gone, or a way to it that drops packets, is noticed in some fifteen seconds, not in TCP's hours.
LIVELY: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
#: Milliseconds. No statement of ours takes a second; one that waits longer waits for somebody who has stopped.
_PATIENCE = "-c statement_timeout=15000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=30000"

#: Planning takes longer than most of our statements, and compiling them longer still.
_PLANNED_ONCE = "-c plan_cache_mode=force_generic_plan -c jit=off"


def connect(url: str) -> AsyncEngine:
    """An engine for ``postgresql+psycopg://…``; connections are checked before use, so a database restart heals.

    Errors do not show parameters: prompts and lease tokens stay out of logs.
    """
    return create_async_engine(
        url,
        pool_size=5,
        max_overflow=10,
        pool_pre_ping=True,
        pool_timeout=8,
        hide_parameters=True,
        connect_args={**LIVELY, "options": _PATIENCE},
    )


async def open_plain(url: str) -> psycopg.AsyncConnection:
    """A connection for single statements that are said often. They are prepared and planned at their first use.

    Raises psycopg.OperationalError.
    """
    plain = url.replace("+psycopg", "", 1)
    return await psycopg.AsyncConnection.connect(
        plain, autocommit=True, prepare_threshold=0, options=f"{_PATIENCE} {_PLANNED_ONCE}", **LIVELY
    )


def in_seconds(seconds: float | ColumnElement[Any]) -> Any:
    """SQL for a moment from now, by the database's clock."""
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def migrate(url: str) -> None:
    """Bring the schema to the newest version. Safe to call from several processes at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "head")


async def listen(url: str, channel: str = CHANNEL) -> AsyncGenerator[str, None]:
    """Yield the payload of each notification, for ever. An empty one comes first, when listening has begun.

    Raises:
        psycopg.OperationalError: the connection is lost; call again.
    """
    connection = await psycopg.AsyncConnection.connect(url.replace("+psycopg", "", 1), autocommit=True, **LIVELY)
    async with connection:
        await connection.execute(f"LISTEN {channel}")
        yield ""
        async for notification in connection.notifies():
            yield notification.payload
