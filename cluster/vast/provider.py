"""Vast.ai as the fleet's :class:`~cluster.fleet.provider.Provider`."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from cluster.fleet.provider import (
    AccountRefused,
    Candidate,
    Machine,
    Misrented,
    OfferGone,
    Order,
    ProviderError,
    Status,
    Unclear,
)
from cluster.fleet.terms import Terms
from cluster.fleet.waiting import Reason
from cluster.vast import errors
from cluster.vast.client import VastClient
from cluster.vast.cost import Work
from cluster.vast.instance import Instance
from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer
from cluster.vast.offers import Kept, rank
from cluster.vast.pacing import Clock, SystemClock
from cluster.vast.rental import BadRequest, RentRequest
from cluster.vast.search import fitting, pages

log = structlog.get_logger()

#: Seconds for which a look at the market is good: searches are limited by the day, and offers live for longer.
MARKET_S = 60.0
_MONTH_H = 730.0
#: What Vast says of instances that come up; there are others, which are taken for one of these until they are too late.
_STARTING = (None, "created", "loading", "rebooting", "scheduling")
_STATUS = {"running": Status.RUNNING, "exited": Status.EXITED, "offline": Status.OFFLINE, "stopped": Status.OUTBID}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is rented for a node type."""

    node: NodeType
    work: Work
    #: With its digest.
    image: str
    args: tuple[str, ...] = ()
    onstart: str = field(default="", repr=False)
    #: Beside what each order brings.
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Market:
    seen_at: float = float("-inf")
    offers: tuple[Offer, ...] = ()
    #: Somebody asks already.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class VastProvider:
    """``kinds`` by the node type's name."""

    def __init__(self, client: VastClient, kinds: Mapping[str, Kind], *, clock: Clock | None = None) -> None:
        self._client, self._kinds = client, kinds
        self._clock = clock or SystemClock()
        #: By node type, those on demand and those to bid for.
        self._markets: defaultdict[tuple[str, bool], _Market] = defaultdict(_Market)
        self._unknown: set[str | None] = set()

    async def candidates(self, node_type: str, blocked: Collection[str]) -> Sequence[Candidate]:
        kind = self._kinds.get(node_type)
        if kind is None:
            return ()
        offers = await self._offers(kind.node, bid=False)
        if kind.node.spot_usd_per_hour is not None:
            offers += await self._offers(kind.node, bid=True)
        ranking = rank(offers, kind.node, kind.work, {int(each) for each in blocked})
        return [_candidate(each, kind) for each in ranking.kept]

    async def rent(self, order: Order) -> Machine:
        kind = self._kinds[order.node_type]
        candidate = order.candidate
        # Whatever comes of it, nobody is to try it once more.
        for bid in (False, True):
            market = self._markets[order.node_type, bid]
            market.offers = tuple(each for each in market.offers if each.id != int(candidate.offer))
        with _translated():
            request = RentRequest(
                offer_id=int(candidate.offer),
                image=kind.image,
                disk_gb=kind.node.disk_gb,
                label=order.label,
                most_usd_per_hour=candidate.terms.usd_per_hour,
                bid_usd=candidate.terms.gpu_usd_per_hour if candidate.bid else None,
                args=kind.args,
                onstart=kind.onstart,
                env={**kind.env, **order.env},
            )
            return self._machine(await self._client.rent(request))

    async def machines(self) -> Sequence[Machine]:
        with _translated():
            return [self._machine(each) for each in await self._client.instances()]

    async def destroy(self, instance: str) -> None:
        with _translated():
            await self._client.destroy(int(instance))

    async def credit(self) -> float:
        with _translated():
            return await self._client.credit()

    async def charges(self, since: datetime) -> Mapping[str, float]:
        with _translated():
            charges = await self._client.charges(since, self._clock.now())
        return {str(instance): usd for instance, usd in charges.items()}

    async def _offers(self, node: NodeType, *, bid: bool) -> tuple[Offer, ...]:
        market = self._markets[node.name, bid]
        async with market.turn:
            if self._clock.monotonic() - market.seen_at >= MARKET_S:
                with _translated():
                    market.offers = (await pages(fitting(node, bid=bid), self._client.search)).offers
                market.seen_at = self._clock.monotonic()
        return market.offers

    def _machine(self, instance: Instance) -> Machine:
        begun = instance.start_date
        return Machine(
            id=str(instance.id),
            label=instance.label or "",
            status=self._status(instance),
            detail=instance.status_msg or "",
            usd_per_hour=instance.dph_total,
            bid=instance.is_bid,
            begun_at=datetime.fromtimestamp(begun, UTC) if begun is not None and 0 < begun < 1e11 else None,
        )

    def _status(self, instance: Instance) -> Status:
        message = instance.status_msg or ""
        if instance.intended_status == "stopped":
            return Status.OUTBID
        if "OCI runtime create failed" in message or message.startswith("Error"):
            return Status.BROKEN
        actual = instance.actual_status
        if actual not in _STARTING and actual not in _STATUS and actual not in self._unknown:
            self._unknown.add(actual)
            log.warning("vast.unknown_status", status=actual, instance_id=instance.id)
        return _STATUS.get(actual or "", Status.LOADING)


def _candidate(kept: Kept, kind: Kind) -> Candidate:
    offer = kept.offer
    storage = kind.node.disk_gb * offer.storage_cost / _MONTH_H
    return Candidate(
        offer=str(offer.id),
        host=str(offer.machine_id),
        terms=Terms(
            # What is said to be the whole is what is held against the rental.
            gpu_usd_per_hour=max(0.0, offer.dph_total - storage) if kept.bid_usd is None else kept.bid_usd,
            storage_usd_per_hour=storage,
            down_usd_per_gb=offer.inet_down_cost,
            up_usd_per_gb=offer.inet_up_cost,
        ),
        bid=kept.bid_usd is not None,
        race=kind.node.race,
        start_s=kept.cost.cold_start_s,
        start_bytes=kind.work.start_bytes,
        image_bytes=kind.work.image_bytes,
        line_mbps=offer.inet_down_mbps,
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except errors.OfferGone as error:
        raise OfferGone(str(error)) from error
    except errors.Ambiguous as error:
        raise Unclear(str(error)) from error
    except errors.BadRental as error:
        raise Misrented(str(error), instance=str(error.instance_id), destroyed=error.destroyed) from error
    except errors.NoCredit as error:
        raise AccountRefused(str(error), Reason.NO_CREDIT) from error
    except errors.Unauthorized as error:
        raise AccountRefused(str(error), Reason.NOT_ALLOWED) from error
    except (errors.Refused, BadRequest) as error:
        raise AccountRefused(str(error), Reason.REFUSED) from error
    except errors.RateLimited as error:
        raise ProviderError(str(error), retry_after_s=error.retry_after_s) from error
    except errors.VastError as error:
        raise ProviderError(str(error)) from error
