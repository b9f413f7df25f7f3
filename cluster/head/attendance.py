"""When rented nodes work and when they wait, by the jobs that ran on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job's attempt on a node."""

    #: As Ray calls it: the id of its slot.
    node: str
    begun_at: datetime
    #: None: it goes on.
    ended_at: datetime | None = None


@dataclass(frozen=True)
class Change:
    """From then on it works, or waits."""

    at: datetime
    busy: bool


def spells(runs: Sequence[Run]) -> Iterator[tuple[datetime, datetime | None]]:
    """Times in which at least one of a node's runs went on, in order. The last may have no end yet."""
    begun: datetime | None = None
    until: datetime | None = None
    for run in sorted(runs, key=lambda run: run.begun_at):
        if begun is not None and (until is None or run.begun_at <= until):
            until = None if until is None or run.ended_at is None else max(until, run.ended_at)
            continue
        if begun is not None:
            yield begun, until
        begun, until = run.begun_at, run.ended_at
    if begun is not None:
        yield begun, until


def changes(last: Change | None, runs: Sequence[Run]) -> Sequence[Change]:
    """What is new of a node since ``last`` was said of it (None: it waits). A run may be told again and again, or late:
    what was said stays said."""
    found: list[Change] = []
    for begun, until in spells(runs):
        before = found[-1] if found else last
        if before is not None and until is not None and until <= before.at:
            continue
        if before is None or not before.busy:
            found.append(Change(begun if before is None else max(begun, before.at), True))
        if until is not None:
            found.append(Change(until, False))
    return found
