"""What the API is measured against: uvicorn and psycopg doing the same SQL, and nothing else.

``python -m tests.benchmarks.bare PORT DATABASE_URL``. ``GET /…/{job_id}`` reads a job, ``POST`` makes one of the JSON
in its body; each on a connection of a pool in autocommit, with prepared statements.
"""

import json
import sys
import uuid
from typing import Any

import uvicorn
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from starlette.types import Receive, Scope, Send

from serve_app.jobs.accepting import ACCEPT
from serve_app.jobs.database import CHANNEL
from serve_app.jobs.reads import READ

#: Connections: with more, PostgreSQL's processes wait for each other on a small machine.
POOL = 8


class Bare:
    """The ASGI application."""

    def __init__(self, url: str) -> None:
        options = {
            "autocommit": True,
            "prepare_threshold": 0,
            "row_factory": dict_row,
            "options": "-c plan_cache_mode=force_generic_plan -c jit=off",
        }
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url, kwargs=options, min_size=POOL, max_size=POOL, open=False
        )
        self._opened = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._opened:
            self._opened = True
            await self._pool.open(wait=True)
        if scope["method"] == "POST":
            asked = json.loads((await receive())["body"])
            status, row = 201, await self._one(ACCEPT, {"rows": Jsonb([_row(asked)]), "channel": CHANNEL})
        else:
            status, row = 200, await self._one(READ, {"ids": [scope["path"].rsplit("/", 1)[1]]})
        body = json.dumps(row, default=str).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _one(self, statement: str, values: dict[str, object]) -> object:
        async with self._pool.connection() as connection:
            return await (await connection.execute(statement, values)).fetchone()


def _row(asked: dict[str, Any]) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "nonce": "0123456789abcdef",
        "model": asked["model"],
        "params": {"prompt": asked["prompt"]},
        "effort": 1,
        "sources": {"image": asked["image_url"]},
        "uploads": {},
        "key_id": "",
        "request_id": "",
        "priority": 0,
        "metadata": {},
    }


if __name__ == "__main__":
    uvicorn.run(
        Bare(sys.argv[2]), port=int(sys.argv[1]), access_log=False, log_level="error", lifespan="off", loop="uvloop"
    )
