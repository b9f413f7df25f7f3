"""What was spent: every second of every rental by its state, at the price fixed when it was rented."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cluster.fleet.rental import Rental, State, Why

#: A machine that nobody can use costs its disk only.
_STOPPED = frozenset({Why.OUTBID, Why.OFFLINE})


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Some time of a rental in one state, on one day (UTC)."""

    label: str
    node_type: str
    state: State
    begun_at: datetime
    until: datetime
    gpu_usd: float
    storage_usd: float
    bandwidth_usd: float


def midnight(moment: datetime) -> datetime:
    """The one before, UTC."""
    moment = moment.astimezone(UTC)
    return datetime(moment.year, moment.month, moment.day, tzinfo=UTC)


def so_far(rental: Rental, now: datetime) -> tuple[Rental, Sequence[Stretch]]:
    """The open stretch, which ends now for the time being; two of them or more if a midnight has passed."""
    done: list[Stretch] = []
    while rental.begun_at is not None:
        begun = max(rental.stretch_at, rental.begun_at)
        until = now if rental.destroyed_at is None else min(now, rental.destroyed_at)
        tomorrow = midnight(begun) + timedelta(days=1)
        if begun < until:
            done.append(_stretch(rental, begun, min(until, tomorrow)))
        if until < tomorrow:
            break
        rental = _opened(rental, tomorrow)
    return rental, done


def moved(rental: Rental, state: State, at: datetime) -> tuple[Rental, Sequence[Stretch]]:
    """It is in another state from then on; the stretch of the one before is closed. A clock that was put back meanwhile
    books nothing twice."""
    at = max(at, rental.stretch_at)
    rental, done = so_far(rental, at)
    # A stretch of no time is none: what was fetched in it belongs to the next one.
    rental = _opened(rental, at) if done else replace(rental, stretch_at=at)
    worked_at = rental.worked_at or (at if state.works else None)
    return replace(rental, state=state, since=at, worked_at=worked_at), done


def _opened(rental: Rental, at: datetime) -> Rental:
    return replace(rental, stretch_at=at, stretch_down=rental.down_bytes, stretch_up=rental.up_bytes)


def _stretch(rental: Rental, begun: datetime, until: datetime) -> Stretch:
    hours = (until - begun).total_seconds() / 3600
    stopped = rental.state is State.ENDING and rental.why in _STOPPED
    terms = rental.terms
    return Stretch(
        label=rental.label,
        node_type=rental.node_type,
        state=rental.state,
        begun_at=begun,
        until=until,
        gpu_usd=0.0 if stopped else terms.gpu_usd_per_hour * hours,
        storage_usd=terms.storage_usd_per_hour * hours,
        bandwidth_usd=terms.traffic_usd(rental.down_bytes - rental.stretch_down, rental.up_bytes - rental.stretch_up),
    )
