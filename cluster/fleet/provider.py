"""What the fleet needs of whoever rents out machines. A further kind is one folder with one of these in it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cluster.explained import Explained
from cluster.fleet.terms import Terms
from cluster.fleet.waiting import Reason


class ProviderError(Exception):
    """It did not work, and nothing was changed. ``reason`` is what a slot then waits for."""

    reason = Reason.PROVIDER

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        #: As the provider said; None if it did not.
        self.retry_after_s = retry_after_s


class AccountRefused(ProviderError):
    """The key, the credit or the request itself: another machine would not help."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class OfferGone(ProviderError):
    """Somebody else was faster: try another."""


class Unclear(ProviderError):
    """It may have been rented. Whoever has the label in the list is it."""


class Misrented(ProviderError):
    """It was rented, but is not what was asked for."""

    def __init__(self, message: str, *, instance: str, destroyed: bool) -> None:
        super().__init__(message)
        self.instance = instance
        self.destroyed = destroyed


class Status(Explained):
    """Of a rented machine, as its provider sees it."""

    LOADING = "loading", "It is not there yet. So is whatever we have no word for: the time limit ends it."
    RUNNING = "running", "Its container runs."
    BROKEN = "broken", "Its container can't be started."
    EXITED = "exited", "Its container has ended."
    OFFLINE = "offline", "Its host does not answer."
    OUTBID = "outbid", "It was stopped for a higher bid."


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What could be rented."""

    #: The provider's names of the offer and of the machine.
    offer: str
    host: str
    terms: Terms
    #: Somebody may bid more at any time; its price for the GPUs is what we bid.
    bid: bool = False
    #: For a node of its type two may be started, where traffic is cheap.
    race: bool = False
    #: Expected, as in :class:`~cluster.fleet.rental.Rental`.
    start_s: float
    start_bytes: float
    image_bytes: float
    line_mbps: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be rented."""

    label: str
    node_type: str
    candidate: Candidate
    #: Of its container; tokens are among it.
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is rented."""

    #: The provider's.
    id: str
    label: str
    status: Status
    #: Of the status, for people.
    detail: str = ""
    #: Dollars per hour, storage included; None where it does not say.
    usd_per_hour: float | None = None
    #: Somebody may bid more; None where it does not say.
    bid: bool | None = None
    #: From when on it costs; None where it does not say.
    begun_at: datetime | None = None


class Provider(Protocol):
    """All methods raise :class:`ProviderError`."""

    async def candidates(self, node_type: str, blocked: Collection[str]) -> Sequence[Candidate]:
        """Best first. Cheap to call again and again. ``blocked`` are machines that are not to be tried."""
        ...

    async def rent(self, order: Order) -> Machine:
        """Raises all of the above. Whoever is cancelled in here may have rented it."""
        ...

    async def machines(self) -> Sequence[Machine]:
        """All that the account has, anybody's: never a part."""
        ...

    async def destroy(self, instance: str) -> None:
        """It is fine if it is gone already."""
        ...

    async def credit(self) -> float:
        """Dollars left to spend."""
        ...

    async def charges(self, since: datetime) -> Mapping[str, float] | None:
        """Dollars charged since that day began (UTC), by instance, gone ones too. None: this provider does not say."""
        ...
