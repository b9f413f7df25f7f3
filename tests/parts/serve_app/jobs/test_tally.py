"""How many jobs there are."""

from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs import tally
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import running, waiting


async def test_counts_are_by_model_and_status(store: JobStore, engine: AsyncEngine) -> None:
    await running(store)
    await waiting(store, "ann")
    await waiting(store, "ann", model="wav2lip")
    await store.open_upload(None)
    assert await tally.counts(engine) == {"ltx2": {"processing": 1, "queued": 1}, "wav2lip": {"queued": 1}}
