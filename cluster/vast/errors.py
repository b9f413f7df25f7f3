"""How calls to Vast fail. No message holds the account's key, nor a value of a rented machine's environment.

::

    VastError
    ├── Unauthorized
    ├── NoCredit
    ├── RateLimited             .retry_after_s
    │   └── SearchQuotaExceeded .until
    ├── OfferGone               .offer_id
    ├── Refused                 .status, .code
    ├── Unavailable             nothing was changed
    ├── Ambiguous               .label: a machine may have been rented
    └── BadRental               .instance_id, .destroyed: a machine was rented, but not what was asked for
        ├── WrongTerms
        └── InstanceGone
"""

from datetime import datetime


class VastError(Exception):
    """A call to Vast failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class Unauthorized(VastError):
    """Vast does not know the key, or the key may not do this."""


class NoCredit(VastError):
    """The account has no credit left."""


class RateLimited(VastError):
    """Vast wants fewer requests."""

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        #: As Vast said; None if it did not.
        self.retry_after_s = retry_after_s


class SearchQuotaExceeded(RateLimited):
    """The account's searches for today are used up."""

    def __init__(self, until: datetime, retry_after_s: float) -> None:
        super().__init__(
            f"The account's searches for today are used up. There are new ones at {until:%Y-%m-%d %H:%M} UTC.",
            retry_after_s=retry_after_s,
        )
        self.until = until


class OfferGone(VastError):
    """Somebody else was faster, or the host took the offer back."""

    def __init__(self, offer_id: int) -> None:
        super().__init__(f"Offer {offer_id} is gone: somebody else was faster, or the host took it back.")
        self.offer_id = offer_id


class Refused(VastError):
    """Vast understood and said no; the same call will get the same answer."""

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        #: Vast's word for it, e.g. ``invalid_args``; empty if it had none.
        self.code = code


class Unavailable(VastError):
    """Vast does not answer, or not with what it should. Nothing was changed."""


class Ambiguous(VastError):
    """A machine may have been rented: no answer came, and no instance with the label has shown up since.

    Whoever sweeps has to look for the label later, too.
    """

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(f"Whether {label!r} was rented is not known ({reason}). Look for that label.")
        self.label = label


class BadRental(VastError):
    """A machine was rented, but is not what was asked for. It was destroyed, unless ``destroyed`` is False."""

    def __init__(self, instance_id: int, reason: str, *, destroyed: bool) -> None:
        end = "was destroyed" if destroyed else "COULD NOT BE DESTROYED and may cost money: destroy it"
        super().__init__(f"Instance {instance_id} was rented, but {reason}. It {end}.")
        self.instance_id = instance_id
        self.destroyed = destroyed


class WrongTerms(BadRental):
    """It is on-demand where a bid was made (or the other way round), or dearer than agreed."""


class InstanceGone(BadRental):
    """It could not be found any more right after it was rented."""
