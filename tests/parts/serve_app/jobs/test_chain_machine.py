"""Any graph of jobs that wait for each other's videos, whatever becomes of each: all end, with true reasons.

What holds after each step is asked of the rows alone; what clients have done is all that is remembered.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.jobs.chains import SourceUnknown, SourceUnusable
from serve_app.jobs.job import Job, Status, chained
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import execute, fetch, new_job

T = TypeVar("T")
KEYS = ("key_1", "key_2")
ENDS = st.sampled_from(["complete", "fail", "cancel", "delete", "expire"])
#: Picks one of those that there are: what is drawn must not depend on what became of jobs beside each other.
WHICH = st.integers(0, 10**6)
NEVER_THERE = "00000000-0000-4000-8000-000000000000"


class ChainMachine(RuleBasedStateMachine):
    """Set ``engine`` and ``loop`` on a subclass."""

    engine: AsyncEngine
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.store = JobStore(self.engine, lease_s=3600)
        tables = ["jobs", "deliveries", "counters", "discarded_media", "used_ids", "turns", "job_tally"]
        emptied = "; ".join(f"DELETE FROM {table}" for table in [*tables, "ended_sources"])
        self.do(execute(self.engine, f"SET LOCAL session_replication_role = replica; {emptied}"))
        #: All ids that ever were, by key.
        self.ids: dict[str, str] = {}
        self.cancelled: set[str] = set()
        #: Those whose sources had all completed once.
        self.went_on: set[str] = set()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def rows(self) -> dict[str, Job]:
        return {job.id: job for job in self.do(self.store.list(limit=1000))}

    # ------------------------------------------------------------ what clients and workers do

    @rule(key=st.sampled_from(KEYS))
    def open_upload(self, key):
        job = self.do(self.store.open_upload(None, key_id=key))
        self.ids[job.id] = key

    @rule(key=st.sampled_from(KEYS), sources=st.lists(WHICH, max_size=2), into=WHICH)
    def submit(self, key, sources, into):
        """A job of up to two sources; some were opened long before, be it by their sources' sources."""
        rows = self.rows()
        # The youngest first: so chains become long.
        known = [NEVER_THERE, *self.ids][::-1]
        picked = [known[which % len(known)] for which in sources]
        uploading = [each.id for each in rows.values() if each.status is Status.UPLOADING and each.key_id == key]
        job_id = [None, *uploading][into % (1 + len(uploading))]
        named = {name: f"job:{each}" for name, each in zip(("video", "audio"), picked, strict=False)}
        new = new_job(model="wav2lip", params={}, sources=named, key_id=key)
        found = [rows[each] if each in rows and rows[each].key_id == key else None for each in picked]
        unusable = (Status.UPLOADING, Status.FAILED, Status.CANCELLED)
        try:
            job = self.do(self.store.submit(new, job_id, of_key=key))
        except SourceUnknown:
            assert None in found
        except SourceUnusable:
            assert any(each is not None and each.status in unusable for each in found)
        else:
            assert all(each is not None and each.status not in unusable for each in found)
            expected = {each.id for each in found if each is not None and each.status is not Status.COMPLETED}
            assert job is not None
            assert set(job.awaits or ()) == expected
            self.ids[job.id] = key
            if not expected:
                self.went_on.add(job.id)

    @rule(how=ENDS, which=WHICH)
    def end(self, how, which):
        self.do(self.ending_of(which, how))

    @rule(ends=st.lists(st.tuples(WHICH, ENDS), min_size=2, max_size=5))
    def many_at_once(self, ends):
        """Ends of several beside two dispatchers: nobody waits for each other in a circle."""

        async def storm() -> None:
            await asyncio.gather(*(self.ending_of(*each) for each in ends), self.settling(), self.settling())

        self.do(storm())

    async def ending_of(self, which: int, how: str) -> None:
        jobs = sorted(job.id for job in await self.store.list(limit=1000) if not job.status.terminal)
        if jobs:
            await self.ending(jobs[which % len(jobs)], how)

    async def ending(self, job_id: str, how: str) -> None:
        match how:
            case "complete":
                await self.store.end_externally(job_id, video_url="https://videos.example/a.mp4")
            case "fail":
                await self.store.end_externally(job_id, error="no")
            case "cancel":
                self.cancelled.add(job_id)
                await self.store.cancel(job_id)
            case "delete":
                await self.store.delete(job_id)
            case "expire":
                late = "UPDATE jobs SET expires_at = now() - interval '1 second' WHERE id = :id"
                await execute(self.engine, late, id=job_id)
                while await self.store.expire_deadlines():
                    pass

    @rule()
    def retention(self):
        """All that has ended is forgotten, seen to or not."""
        policy = RetentionPolicy(completed_hours=-1, failed_hours=-1)
        self.do(Retention(self.engine, None, policy).forget_jobs())

    async def settling(self) -> None:
        while await self.store.settle():
            pass

    # ------------------------------------------------------------ what holds once the dispatcher has looked

    @rule()
    def settle(self):
        self.do(self.settling())
        assert self.do(fetch(self.engine, "SELECT * FROM ended_sources")) == []
        rows = self.rows()
        for job in rows.values():
            sources = [rows.get(each) for each in chained(job.sources).values()]
            if job.awaits is not None:
                assert job.status is Status.QUEUED
                unfinished = {each.id for each in sources if each is not None and not each.status.terminal}
                assert unfinished == set(job.awaits), "it waits for those that have not ended, and only for them"
                ended = {each.status for each in sources if each is not None and each.status.terminal}
                assert ended <= {Status.COMPLETED}
            elif job.error_code == "source_failed":
                self.check_reason(job, rows)
            elif job.status is Status.CANCELLED and job.id not in self.cancelled:
                assert any(each is None or each.status is Status.CANCELLED for each in sources)
            elif job.status is Status.QUEUED and job.id not in self.went_on:
                assert all(each is None or each.status is Status.COMPLETED for each in sources)
                self.went_on.add(job.id)

    def check_reason(self, job: Job, rows: dict[str, Job]) -> None:
        """It names a source of the job, and what became of that one."""
        assert job.error_message is not None
        named = job.error_message.split(",")[0].removeprefix("Job ")
        assert named in chained(job.sources).values()
        source = rows.get(named)
        if source is None:
            assert named in self.ids
        else:
            assert source.status is Status.FAILED
            assert f"failed with {source.error_code}: {source.error_message}"[:100] in job.error_message
        # Deleted is only what had not failed before.
        assert ("was deleted" in job.error_message) <= (source is None or "was deleted" in str(source.error_message))

    def teardown(self) -> None:
        """Once all have ended that work or wait for nobody, all have: there are no circles."""
        try:
            while waiting_for_nobody := [j.id for j in self.rows().values() if not j.status.terminal and not j.awaits]:
                for job_id in waiting_for_nobody:
                    self.do(self.ending(job_id, "complete"))
                    # Of an upload that was never submitted.
                    self.do(self.ending(job_id, "cancel"))
                self.settle()
            assert {job.status.terminal for job in self.rows().values()} <= {True}
        finally:
            self.do(self.store.aclose())


def test_whatever_becomes_of_a_source_all_that_wait_end_with_a_true_reason(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    engine = create_async_engine(database_url)
    machine = type("Machine", (ChainMachine,), {"engine": engine, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=30,
                stateful_step_count=25,
                derandomize=True,
                database=None,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(engine.dispose())
        loop.close()
