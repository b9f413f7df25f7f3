"""Renting one machine, so that afterwards it is known what there is to pay.

A rent is never sent twice, but after 429, which does nothing. When no answer comes, or one that says nothing, the
machine may be ours all the same: the request's label tells, once the list shows it. And a machine that is ours without
being what was asked for is destroyed here and now, and reported as :class:`BadRental`: one that was made although the
answer is an error (too low a bid leaves a stopped one), one on demand where a bid was made, one that costs more.
"""

from typing import Protocol

import structlog

from cluster.vast.answer import Answer
from cluster.vast.errors import (
    Ambiguous,
    BadRental,
    InstanceGone,
    OfferGone,
    RateLimited,
    Unavailable,
    VastError,
    WrongTerms,
)
from cluster.vast.exchange import TRIES, Exchange, NoAnswer, NotSent, limited_wait
from cluster.vast.instance import Instance
from cluster.vast.pacing import Endpoint
from cluster.vast.rental import RentRequest

log = structlog.get_logger()

#: Seconds for which a fresh instance may be missing where it should be; others have settled on a minute.
PATIENCE_S = 60.0
#: Seconds between two looks.
_LOOK_S = 3.0
#: Seconds that Vast wants before the next rent after one that came too early.
_PENALTY_S = 12.0
_GONE = ("no_such_ask", "no such ask")
#: Prices go through other people's floating point numbers.
_ROUNDING = 1.0001


class Rented(Protocol):
    """What is done with machines that are rented, as the client does it. All raise :class:`VastError`."""

    async def instances(self) -> tuple[Instance, ...]: ...

    async def show(self, instance_id: int) -> Instance | None: ...

    async def destroy(self, instance_id: int) -> None: ...


async def rent(request: RentRequest, exchange: Exchange, rented: Rented) -> Instance:
    """See :meth:`cluster.vast.client.VastClient.rent`."""
    number = 1
    while True:
        try:
            answer = await exchange.once(
                Endpoint.RENT, "PUT", f"/api/v0/asks/{request.offer_id}/", body=request.body(), secrets=request.secrets
            )
        except NotSent as error:
            raise Unavailable(f"Vast does not answer ({error}).") from error
        except NoAnswer as error:
            return await _resolve(request, exchange, rented, str(error))
        contract = _contract(answer)
        if contract is not None and answer.ok:
            return await _checked(request, exchange, rented, contract)
        if contract is not None:
            said = f"the answer was an error ({answer.fault(exchange.clock.now())})"
            raise BadRental(contract, said, destroyed=await _destroyed(rented, contract, said))
        if _says_nothing(answer):
            return await _resolve(request, exchange, rented, f"status {answer.status}")
        refusal = _refusal(request, answer, exchange)
        if not isinstance(refusal, RateLimited) or number == TRIES or (wait_s := limited_wait(refusal, number)) is None:
            raise refusal
        exchange.pace.pause(Endpoint.RENT, max(wait_s, _PENALTY_S))
        number += 1


def _contract(answer: Answer) -> int | None:
    """The instance that was made."""
    number = (answer.data or {}).get("new_contract")
    return number if type(number) is int and number > 0 else None


def _says_nothing(answer: Answer) -> bool:
    """It may have been rented: the fault is on the way or within, or it is a success without an instance."""
    if answer.status < 300:
        said_no = answer.says(*_GONE) or (answer.data is not None and answer.data.get("success") is False)
        return not said_no
    # Even if such an answer says that the offer is gone: a server in between may have tried twice.
    return answer.status >= 500 or answer.status == 408


def _refusal(request: RentRequest, answer: Answer, exchange: Exchange) -> VastError:
    # 404 without an object is not Vast's, but of a server that has no such path.
    gone = answer.status == 410 or (answer.status == 404 and answer.data is not None)
    if gone or answer.says(*_GONE):
        return OfferGone(request.offer_id)
    return answer.fault(exchange.clock.now())


async def _resolve(request: RentRequest, exchange: Exchange, rented: Rented, reason: str) -> Instance:
    """The instance with the request's label. Raises :class:`Ambiguous`, or as :func:`_checked`."""
    log.warning("vast.rent_unclear", label=request.label, offer_id=request.offer_id, reason=reason)
    clock = exchange.clock
    deadline = clock.monotonic() + PATIENCE_S
    while True:
        try:
            found = [each for each in await rented.instances() if each.label == request.label]
        except (Unavailable, RateLimited) as error:
            log.warning("vast.list_failed", label=request.label, error=str(error))
        except VastError as error:
            raise Ambiguous(request.label, reason) from error
        else:
            if len(found) > 1:
                raise Ambiguous(request.label, f"{reason}; {len(found)} instances have that label")
            if found:
                return await _checked(request, exchange, rented, found[0].id, found[0])
        if clock.monotonic() >= deadline:
            raise Ambiguous(request.label, reason)
        await clock.sleep(_LOOK_S)


async def _checked(
    request: RentRequest, exchange: Exchange, rented: Rented, instance_id: int, seen: Instance | None = None
) -> Instance:
    """The instance, if it is what was asked for. Raises :class:`BadRental`."""
    instance = seen
    clock = exchange.clock
    deadline = clock.monotonic() + PATIENCE_S
    unread = ""
    while instance is None or instance.is_bid is None or instance.dph_total is None:
        try:
            instance, unread = await rented.show(instance_id), ""
        except VastError as error:
            unread = str(error)
            if not isinstance(error, Unavailable | RateLimited):
                break
        else:
            if instance is not None and instance.is_bid is not None and instance.dph_total is not None:
                break
        if clock.monotonic() >= deadline:
            break
        await clock.sleep(_LOOK_S)
    kind, fault = _fault(request, instance, unread)
    if fault:
        raise kind(instance_id, fault, destroyed=await _destroyed(rented, instance_id, fault))
    assert instance is not None
    log.info("vast.rented", instance_id=instance_id, label=request.label, usd_per_hour=instance.dph_total)
    return instance


def _fault(request: RentRequest, instance: Instance | None, unread: str) -> tuple[type[BadRental], str]:
    """What is wrong with it; empty if nothing is."""
    if unread:
        return BadRental, f"it could not be looked at ({unread})"
    if instance is None:
        return InstanceGone, "there is no such instance any more"
    if instance.is_bid is None or instance.dph_total is None:
        return BadRental, "its record does not say what it costs"
    if instance.is_bid is not (request.bid_usd is not None):
        # Vast rents on demand, and says nothing, where it overlooks the price.
        return WrongTerms, "it is a bid" if instance.is_bid else "it is on demand where a bid was made"
    if instance.dph_total > request.most_usd_per_hour * _ROUNDING:
        agreed = f"{request.most_usd_per_hour:.4f} were agreed"
        return WrongTerms, f"it costs {instance.dph_total:.4f} dollars per hour where {agreed}"
    return BadRental, ""


async def _destroyed(rented: Rented, instance_id: int, reason: str) -> bool:
    try:
        await rented.destroy(instance_id)
    except VastError as error:
        log.error("vast.bad_rental_stays", instance_id=instance_id, reason=reason, error=str(error))
        return False
    log.warning("vast.bad_rental_destroyed", instance_id=instance_id, reason=reason)
    return True
