"""Jobs in the line of a deployment that can't make them, or that is not to be had while another of their model is."""

from collections.abc import Callable, Mapping, Set

import structlog

from deployments.contract import Lease
from deployments.failure_code import FailureCode
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.assignment import TooLarge
from serve_app.jobs.job import Job
from serve_app.jobs.refusal import refusal
from serve_app.jobs.store import JobStore

log = structlog.get_logger()

#: Jobs that are looked at together.
MOVED_AT_ONCE = 100


class Astray:
    """Sends them where they are to be made."""

    def __init__(self, store: JobStore, abilities: Abilities) -> None:
        self._store = store
        self._abilities = abilities
        #: By model, the last job that was looked at by :meth:`move`.
        self._looked_at: dict[str, str] = {}

    async def stays(self, job: Job) -> bool:
        """Whether a job that no replica works on is left where it is. If that is not where it should be it goes there,
        or ends if that is nowhere; but not if somebody has it since."""
        try:
            place = await self._abilities.place(job)
        except TooLarge as error:
            code = FailureCode.RECIPE_UNAVAILABLE if error.unavailable else FailureCode.REQUEST_TOO_LARGE
            if not await self._store.refuse(job, code, refusal(job.model, job.params, error)):
                return True
            log.info("job_refused", job_id=job.id, request_id=job.request_id, was=job.deployment)
            return False
        if place == job.deployment or not await self._store.move(job, place):
            return True
        log.info("job_moved", job_id=job.id, request_id=job.request_id, was=job.deployment, now=place)
        return False

    async def move(self, held: Mapping[Lease, Job], let_go: Callable[[Set[Lease]], None]) -> int:
        """Jobs whose deployment is not served any more, or not to be had while another of their model is; how many
        went. Those ``held`` were claimed and wait on a handle, perhaps for ever: ``let_go`` ends that."""
        if not self._abilities.fresh:
            return 0
        moved = 0
        for model, allowed in (await self._abilities.here()).items():
            for lease, job in held.items():
                if job.model == model and job.deployment not in allowed and not await self.stays(job):
                    let_go({lease})
                    moved += 1
            after = self._looked_at.get(model, "")
            found = await self._store.elsewhere(allowed, model, after, MOVED_AT_ONCE)
            for job in found:
                moved += not await self.stays(job)
            # Some stay, since none that is here could make them: the next look is at those behind.
            self._looked_at[model] = found[-1].id if len(found) == MOVED_AT_ONCE else ""
        return moved
