"""Which deployments there are and what can be asked of each, as the dispatcher writes it down and everybody reads it.

Who takes requests has it in memory, a few seconds old at most. What was decided by an older one is seen when the job is
handed over (``dispatcher.py``).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from operator import itemgetter
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Double, case, cast, func, select, text
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import Deployment
from deployments.contract import Ability
from deployments.registry import MODELS
from serve_app.jobs.assignment import Candidate, assign, at_hand, reassign
from serve_app.jobs.database import in_seconds
from serve_app.jobs.job import Job, NewJob
from serve_app.jobs.tables import abilities
from serve_app.shared import Shared

log = structlog.get_logger()

#: Seconds for which what was read is believed, as for keys (``key_ring.py``).
FRESH_S = 5.0
#: Seconds for which a class counts as one that is to be had after it was seen: a node that comes back, or a head that
#: restarts, must not send jobs elsewhere.
HAD_S = 120
#: What is so still is written again so often, well within that.
REPEAT_S = 20.0
#: Seconds for which a replica is believed. Each says it every hour (``able.py``); of a deployment that has had none for
#: so long, what is expected may be nearer to what the next one can do.
REPORTED_S = 2 * 3600
#: Replicas of a deployment that are remembered, the latest.
MOST_REPLICAS = 200


@dataclass(frozen=True, kw_only=True)
class Told:
    """A deployment, for people: what can be asked of it, and who says so."""

    candidate: Candidate
    #: What a replica has said last, and when; None: none has lately, it is what is expected of the class.
    ability: Ability | None
    reported_at: datetime | None


class Abilities:
    """The table, and what follows of it. For one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._known = self._anew()
        #: What was written down last, and when.
        self._seen: tuple[Set[Deployment], Set[str]] | None = None
        self._seen_at = 0.0

    @property
    def fresh(self) -> bool:
        """Whether this process has written down lately which deployments are to be had. After an outage none seems to
        be, until somebody has."""
        return self._seen is not None and time.monotonic() - self._seen_at < 2 * REPEAT_S

    async def assigned(self, new: NewJob) -> NewJob:
        """With the deployment that is to make it. Raises :class:`~serve_app.jobs.assignment.TooLarge`."""
        found = (await self._known.get()).get(new.model)
        # Nobody has written anything down yet, e.g. in a service that was just made.
        return new if found is None else replace(new, deployment=assign(found, new.variant, new.size))

    async def place(self, job: Job) -> str:
        """The deployment at which a job that waits should be. As long as nothing is :attr:`fresh`, nobody is away.

        Raises :class:`~serve_app.jobs.assignment.TooLarge`: none can make it.
        """
        found = (await self._known.get()).get(job.model)
        spec = MODELS.get(job.model)
        if found is None or spec is None:
            return job.deployment
        if not self.fresh:
            found = [replace(each, had=True) for each in found]
        try:
            params = spec.params.model_validate(job.params)
        except ValidationError:
            # Another version's: what is to become of it shows when it is run.
            return job.deployment
        return reassign(found, job.deployment, spec.variant(params), spec.size(params))

    async def here(self) -> Mapping[str, Set[str]]:
        """By model the deployments that jobs may wait for; those of others go there, if they can be made there."""
        known = await self._known.get()
        return {model: {each.deployment for each in at_hand(found)} for model, found in known.items()}

    async def told(self) -> Mapping[str, Sequence[Told]]:
        """By model, the largest class first; as it is at this moment. A read of few rows."""
        found: defaultdict[str, list[Told]] = defaultdict(list)
        async with self._engine.connect() as db:
            rows = (await db.execute(_ROWS.order_by(abilities.c.gib.desc().nulls_last(), abilities.c.deployment))).all()
        for row in rows:
            if row.model in MODELS:
                latest = next(iter(_said(row)), None)
                ability, at = latest or (None, None)
                found[row.model].append(Told(candidate=_candidate(row), ability=ability, reported_at=at))
        return found

    async def report(self, ability: Ability) -> None:
        """A replica says it."""
        values = {
            "deployment": ability.deployment,
            "model": ability.model,
            "replica": ability.replica,
            "ability": ability.model_dump_json(),
            "believed_s": REPORTED_S,
            "most": MOST_REPLICAS,
        }
        async with self._engine.begin() as db:
            await db.execute(_REPORT, values)
        self._known = self._anew()

    async def see(self, served: Sequence[Deployment], had: Set[str]) -> None:
        """Which deployments there are now, and which of them are to be had; the others are forgotten. Cheap if that is
        what was seen lately."""
        seeing = frozenset(served), frozenset(had)
        if self._seen == seeing and time.monotonic() - self._seen_at < REPEAT_S:
            return
        async with self._engine.begin() as db:
            for each in served:
                row = insert(abilities).values(
                    deployment=each.name,
                    model=each.model,
                    gib=each.gib,
                    had_at=func.now() if each.name in had else None,
                )
                # Said of GPUs of another class. Where a replica was heard first, nobody has said yet which it is.
                changed = abilities.c.gib.is_distinct_from(row.excluded.gib)
                void = changed & (abilities.c.gib.is_not(None) | abilities.c.had_at.is_not(None))
                seen = {
                    "gib": row.excluded.gib,
                    "said": case((void, cast({}, JSONB)), else_=abilities.c.said),
                    "had_at": func.coalesce(row.excluded.had_at, abilities.c.had_at),
                }
                await db.execute(row.on_conflict_do_update(index_elements=["deployment"], set_=seen))
            await db.execute(_FORGET, {"served": [each.name for each in served]})
        # Also where it is the same: what was read since may be older.
        self._known = self._anew()
        self._seen, self._seen_at = seeing, time.monotonic()

    def _anew(self) -> Shared[Mapping[str, Sequence[Candidate]]]:
        return Shared(self._read, fresh_s=FRESH_S)

    async def _read(self) -> Mapping[str, Sequence[Candidate]]:
        """By model."""
        found: defaultdict[str, list[Candidate]] = defaultdict(list)
        async with self._engine.connect() as db:
            rows = (await db.execute(_ROWS)).all()
        for row in rows:
            if row.model in MODELS:
                found[row.model].append(_candidate(row))
        return dict(found)


def _candidate(row: Any) -> Candidate:
    sizes: Mapping[str, int] | None
    default, on_paper = "", MODELS[row.model].on_paper
    paper = None if row.gib is None or on_paper is None else _on_paper(on_paper, row.gib)
    if said := [ability for ability, _ in _said(row)]:
        default = said[0].default_variant
        # What one of them can make waits for that one: the others give it back.
        names = dict.fromkeys(name for ability in said for name in ability.variants)
        most = {name: max(ability.variants.get(name, 0) for ability in said) for name in names}
        # A card larger than its class can do more than the next of the class may.
        sizes = {name: min(size, (paper or {}).get(name, size)) for name, size in most.items()}
    else:
        sizes = paper
    return Candidate(deployment=row.deployment, gib=row.gib, sizes=sizes, default_variant=default, had=row.had)


@cache
def _on_paper(of: Callable[[int], Mapping[str, int]], gib: int) -> Mapping[str, int]:
    """Worked out once: it takes a plan's time, and every look asks."""
    return of(gib)


def _said(row: Any) -> Sequence[tuple[Ability, datetime]]:
    """What replicas have said lately, and when; the latest first."""
    found = []
    for each in sorted(row.said.values(), key=itemgetter("at"), reverse=True):
        if each["at"] <= row.believed_since:
            break
        try:
            found.append((Ability.model_validate(each["ability"]), datetime.fromtimestamp(each["at"], UTC)))
        except ValidationError as error:
            # Another version's.
            log.warning("ability_unreadable", deployment=row.deployment, error=str(error))
    return found


_ROWS = select(
    abilities,
    func.coalesce(abilities.c.had_at > in_seconds(-HAD_S), False).label("had"),
    cast(func.extract("epoch", in_seconds(-REPORTED_S)), Double).label("believed_since"),
)
_REPORT = text("""
    INSERT INTO abilities AS known (deployment, model, said)
    VALUES (:deployment, :model, jsonb_build_object(
        CAST(:replica AS text),
        jsonb_build_object('at', extract(epoch FROM now()), 'ability', CAST(:ability AS jsonb))))
    ON CONFLICT (deployment) DO UPDATE SET said = (
        SELECT jsonb_object_agg(key, value)
          FROM (SELECT key, value FROM jsonb_each(known.said || excluded.said)
                 WHERE CAST(value ->> 'at' AS double precision) > extract(epoch FROM now()) - :believed_s
                 ORDER BY CAST(value ->> 'at' AS double precision) DESC LIMIT :most) AS latest)
""")
_FORGET = text("DELETE FROM abilities WHERE deployment <> ALL (CAST(:served AS text[]))")
