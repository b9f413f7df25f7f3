"""One receiver that never answers is on no other's path, though they are of one key and hear of the same jobs."""

import asyncio
from collections import Counter
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.delivery_queue import HOST_SHARE
from serve_app.jobs.endpoints import Endpoints
from serve_app.jobs.webhook_event import ENDS
from tests.parts.serve_app.jobs.samples import eventually, fetch
from tests.parts.serve_app.neighbourhood import neighbourhood

JOBS = 40


async def test_a_tarpit_delays_no_other_endpoint(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """The older one, too: what is owed to it is first in the line."""
    endpoints = Endpoints(engine)
    async with neighbourhood(engine, database_url, tmp_path) as place:
        tarpit = await endpoints.create("", f"http://slow.test:{place.source.port}/tarpit", ENDS)
        honest = await endpoints.create("", f"http://good.test:{place.source.port}/hook", ENDS)
        assert tarpit is not None
        assert honest is not None

        async def end_one() -> None:
            job = await place.submit("ann", "/silent")
            await place.store.cancel(job.id)

        await asyncio.gather(*(end_one() for _ in range(JOBS)))
        delivered = "SELECT count(*) AS n FROM deliveries WHERE endpoint_id = :id AND delivered_at IS NOT NULL"

        async def all_told() -> bool:
            (row,) = await fetch(engine, delivered, id=honest.id)
            return bool(row["n"] == JOBS)

        await eventually(all_told)
        # The tarpit holds what it may, and no answer of it has come in or was given up meanwhile.
        open_at = Counter(seen.target for seen in place.source.seen)
        assert open_at["/tarpit"] == HOST_SHARE
        waiting = (
            "SELECT count(*) AS n FROM deliveries WHERE endpoint_id = :id AND delivered_at IS NULL AND attempts < 2"
        )
        assert [row["n"] for row in await fetch(engine, waiting, id=tarpit.id)] == [JOBS]
