"""The ledger beside the provider's own charges: rental by rental, once all of what it cost is charged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

#: A difference counts if it is more than both: charges are rounded, and clocks differ.
_SHARE, _USD = 0.05, 0.01
#: A rental that is in no charge may be in a later one, for so long; then it was free.
_PATIENCE = timedelta(days=3)


@dataclass(frozen=True, kw_only=True)
class Booked:
    """A rental that has ended, as the ledger has it."""

    label: str
    #: The provider's.
    instance: str
    begun_at: datetime
    ended_at: datetime
    usd: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The same, with what was charged for it."""

    booked: Booked
    charged_usd: float

    @property
    def differs(self) -> bool:
        apart = abs(self.booked.usd - self.charged_usd)
        return apart > _USD and apart > _SHARE * max(self.booked.usd, self.charged_usd)


def compare(booked: Sequence[Booked], charges_usd: Mapping[str, float], now: datetime) -> Sequence[Compared]:
    """``charges_usd`` by instance, of a time in which all of them began and ended. Left out is what is too fresh."""
    found: list[Compared] = []
    for each in booked:
        charged = charges_usd.get(each.instance)
        if charged is not None or each.ended_at < now - _PATIENCE:
            found.append(Compared(booked=each, charged_usd=charged or 0.0))
    return found
