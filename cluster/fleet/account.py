"""What the provider says of our account: what is left to spend, and what it has charged."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from cluster.fleet.books import Books
from cluster.fleet.ledger import midnight
from cluster.fleet.limits import Limits
from cluster.fleet.provider import Provider, ProviderError
from cluster.fleet.reconcile import compare
from cluster.fleet.waiting import Reason, Wait

log = structlog.get_logger()

#: Told of what happens: a name, and facts that go with it. Never waits, and never raises.
OnEvent = Callable[[str, Mapping[str, Any]], None]

#: After midnight UTC: by then the day before is charged.
_CHARGED_AFTER = timedelta(hours=6)
#: After a failure.
_AGAIN = timedelta(hours=1)


class Account:
    """Looked at by each pass, which asks the provider now and then."""

    def __init__(
        self, provider: Provider, books: Books, limits: Limits, now: Callable[[], datetime], on_event: OnEvent
    ) -> None:
        self._provider, self._books, self._limits, self._now = provider, books, limits, now
        self._on_event = on_event
        self._low = False
        #: Dollars left to spend; None: not known yet.
        self.credit_usd: float | None = None
        self._credit_wanted_at = self._charges_wanted_at = now()
        self._comparing: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Raises what the books do, a pass later."""
        await self._look_at_credit()
        if self._comparing is not None and self._comparing.done():
            done, self._comparing = self._comparing, None
            done.result()
        if self._comparing is None and self._now() >= self._charges_wanted_at:
            # It may take minutes, and no pass waits for it.
            self._charges_wanted_at = self._now() + _AGAIN
            self._comparing = asyncio.create_task(self._compare())

    async def close(self) -> None:
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.gather(self._comparing, return_exceptions=True)

    def broke(self, usd_per_hour: float) -> Wait | None:
        """Without credit for an hour of what runs the provider stops it, in the middle of its work."""
        if self.credit_usd is None or self.credit_usd > usd_per_hour:
            return None
        return Wait(Reason.NO_CREDIT, f"${self.credit_usd:.2f} left", self._credit_wanted_at)

    async def _look_at_credit(self) -> None:
        if self._now() < self._credit_wanted_at:
            return
        try:
            self.credit_usd = await self._provider.credit()
        except ProviderError as error:
            log.warning("fleet.credit_unknown", reason=str(error))
        else:
            self._tell(self.credit_usd)
        self._credit_wanted_at = self._now() + timedelta(seconds=self._limits.account_pause_s)

    def _tell(self, credit_usd: float) -> None:
        """Once when it falls below the limit, and once when it is back."""
        limit_usd = self._limits.low_credit_usd
        if (credit_usd < limit_usd) is self._low:
            return
        self._low = not self._low
        name = "credit_low" if self._low else "credit_back"
        log.warning(f"fleet.{name}", credit_usd=credit_usd, limit_usd=limit_usd)
        self._on_event(name, {"credit_usd": credit_usd, "limit_usd": limit_usd})

    async def _compare(self) -> None:
        now = self._now()
        today = midnight(now)
        booked = await self._books.uncharged(today if now >= today + _CHARGED_AFTER else today - timedelta(days=1))
        if booked:
            try:
                charges = await self._provider.charges(min(each.begun_at for each in booked))
            except ProviderError as error:
                log.warning("fleet.charges_unknown", reason=str(error))
                return
            if charges is not None:
                compared = compare(booked, charges, now)
                await self._books.charge({each.booked.label: each.charged_usd for each in compared})
                for each in filter(lambda each: each.differs, compared):
                    facts = {"label": each.booked.label, "instance": each.booked.instance}
                    log.warning("fleet.charge", **facts, booked_usd=each.booked.usd, charged_usd=each.charged_usd)
        tomorrow = today + timedelta(days=1) + _CHARGED_AFTER
        self._charges_wanted_at = today + _CHARGED_AFTER if now < today + _CHARGED_AFTER else tomorrow
