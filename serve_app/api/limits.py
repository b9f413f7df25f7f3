"""What limits a key's jobs, and how a client is told why one is not taken."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.access.caller import Caller
from serve_app.api.errors import BudgetReached, JobNotFound, QueueFull, SourceUnusable
from serve_app.jobs import chains
from serve_app.jobs.job import NewJob
from serve_app.jobs.quota import NoBudget, NoPlace, Quota
from serve_app.services import Services

#: Seconds after which there may be room again: a place when a job begins, money as the day goes by.
_PLACE_AGAIN_S = 30
_MONEY_AGAIN_S = 3600


async def quota_of(caller: Caller, services: Services) -> Quota | None:
    """What limits this caller's jobs; None: nothing does, which is true of the environment's own key."""
    if not caller.key_id:
        return None
    limits = caller.limits
    return Quota(
        key_id=caller.key_id,
        queued_jobs=limits.queued_jobs,
        usd_per_day=limits.usd_per_day,
        unit_usd={} if limits.usd_per_day is None else await services.forecasts.unit_costs(),
    )


async def require_place(new: NewJob, caller: Caller, services: Services, *, opened: bool = False) -> None:
    """Raises QueueFull or BudgetReached where the caller's key has no room for ``new``: asked before anything is stored
    for it. In the transaction that makes the job it is asked once more."""
    if (quota := await quota_of(caller, services)) is not None:
        with told():
            await services.store.require(quota, new, opened=opened)


@contextmanager
def told() -> Iterator[None]:
    """What the store says of a quota, or of a job that is to be a source, as errors of the API."""
    try:
        yield
    except NoPlace:
        raise QueueFull(headers={"retry-after": str(_PLACE_AGAIN_S)}) from None
    except NoBudget:
        raise BudgetReached(headers={"retry-after": str(_MONEY_AGAIN_S)}) from None
    except chains.SourceUnknown as error:
        field = f"{error.input_name}_url"
        raise JobNotFound(f"{field}: there is no such job, or it was deleted.", param=field) from None
    except chains.SourceUnusable as error:
        raise SourceUnusable(str(error), param=f"{error.input_name}_url") from None
