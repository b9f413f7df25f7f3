"""How long things may take, and how often they may fail."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from cluster.fleet.rental import Rental, State, Why

_DAY_S = 86400.0

#: After which a type is rented on demand for a while.
BIDS_FAILED = frozenset({Why.OUTBID, Why.NO_BID})

#: For which a machine is not tried again after it ended like that. Not for what is not its host's doing.
BLOCKED_S: Mapping[Why, float] = MappingProxyType(
    {
        Why.WRONG_TERMS: 30 * _DAY_S,
        Why.BROKEN: 7 * _DAY_S,
        Why.TRAFFIC: 7 * _DAY_S,
        Why.STUCK: _DAY_S,
        Why.TOO_SLOW: _DAY_S,
        Why.EXITED: _DAY_S,
        Why.OFFLINE: _DAY_S,
        Why.SILENT: _DAY_S,
        # It is taken until the other's bid falls.
        Why.OUTBID: 3600.0,
        Why.NO_BID: 3600.0,
        # Whose doing it is nobody can say.
        Why.NEVER_SEEN: 3600.0,
    }
)
#: Endings that count against a node type, if the rental had never worked.
FAILURES = frozenset({*BLOCKED_S, Why.FAILED, Why.GONE} - BIDS_FAILED)

#: Of the steps of a start whose length does not depend on the line.
STEPS_S: Mapping[State, float] = MappingProxyType({State.BOOTING: 180.0, State.INSTALLING: 420.0, State.JOINING: 300.0})


def step_s(rental: Rental) -> float | None:
    """How long the step may take in which it is; None: for ever."""
    match rental.state:
        case State.LOADING:
            # Unpacking takes as long as fetching. Of the pulls that succeed at all, nearly all do within 12 minutes.
            return _within(300.0, 2 * rental.fetch_s(rental.image_bytes), 900.0)
        case State.WEIGHTS:
            return _within(300.0, 1.5 * rental.fetch_s(rental.start_bytes - rental.image_bytes), 1800.0)
        case _:
            return STEPS_S.get(rental.state)


#: Bytes that a node may fetch, and send, for its jobs: at once, and per second (100 GB an hour). Inputs of one job may
#: be 1.5 GB, where most are a hundredth of that.
_MEDIA_AT_ONCE, _MEDIA = 20e9, 100e9 / 3600


def most_traffic(rental: Rental, now: datetime) -> tuple[float, float]:
    """Bytes in and out that it can need until then; its start it may have to fetch twice.

    What a node says to have fetched is money in the books: without this, one that lies would use up the day's cap, and
    end all the others with it. If it tells the truth, it is dear.
    """
    lasted_s = max(0.0, (now - (rental.begun_at or now)).total_seconds())
    media_bytes = _MEDIA_AT_ONCE + _MEDIA * lasted_s
    return 2 * rental.start_bytes + media_bytes, media_bytes


def _within(least: float, amount: float, most: float) -> float:
    return max(least, min(amount, most))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds, but for what says otherwise."""

    #: Without a report, once there was one.
    silence_s: float = 300.0
    #: A rental that is in no list: fresh ones appear late, and lists have gaps.
    missing_s: float = 60.0
    #: From the reservation on, until what is in no list was not rented: ``rent_s``, then ``missing_s``, and a rest.
    unclear_s: float = 360.0
    #: Dollars; whoever has less left is told so.
    low_credit_usd: float = 5.0
    #: For one call that rents.
    rent_s: float = 240.0
    #: Failures of a type in a row before it pauses, and the first pause, which doubles up to the longest.
    failures: int = 3
    pause_s: float = 120.0
    longest_pause_s: float = 3600.0
    #: For a type, after one of its nodes has said that its weights can't be fetched.
    weights_pause_s: float = 3600.0
    #: For which a type is rented on demand only, after a bid was outdone or not taken.
    on_demand_s: float = 3600.0
    #: After an answer of the provider's that refuses; and between two looks at the account's credit.
    account_pause_s: float = 300.0
    #: After one that did not come, unless it says when.
    retry_s: float = 30.0
    #: Of what the GPU costs during a start: so much at most may the traffic of one that may lose a race cost.
    race_traffic: float = 0.1
    #: Between two passes.
    pass_s: float = 10.0
    #: Rentals that are begun at the same time.
    renting: int = 4
