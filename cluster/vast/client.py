"""A client of Vast's REST API: what can be rented, renting it, what is rented, giving it back, what that costs.

::

    async with VastClient(key) as vast:
        page = await vast.search(search.market(GPU_4090))
        instance = await vast.rent(RentRequest(offer_id=page.offers[0].id, label="video-api-7f3a", …))
        await vast.destroy(instance.id)
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from cluster.vast import renting
from cluster.vast.answer import Answer
from cluster.vast.errors import Unavailable
from cluster.vast.exchange import BASE_URL, TIMEOUT_S, Exchange
from cluster.vast.instance import Instance
from cluster.vast.offer import Offer
from cluster.vast.pacing import Clock, Endpoint
from cluster.vast.rental import RentRequest
from cluster.vast.search import Page, Query

log = structlog.get_logger()

#: Instances per page: Vast's limit.
_PAGE = 25
#: The same of charges.
_CHARGES_PAGE = 100
_DAY_S = 86400
#: Pages after which a list that still goes on is taken for one that turns in circles.
_MOST_PAGES = 200

_Record = TypeVar("_Record", bound=BaseModel)


class VastClient:
    """Safe for concurrent use: requests to one endpoint wait for each other, as Vast wants it.

    All methods raise :class:`~cluster.vast.errors.VastError`. All but ``rent`` are tried several times.
    """

    def __init__(
        self, key: str, base_url: str = BASE_URL, *, clock: Clock | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Raises ValueError for a key or an address that can't be one."""
        self._exchange = Exchange(key, base_url, clock=clock, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.__aexit__(kind, error, trace)

    async def search(self, query: Query) -> Page:
        """The cheapest of the offers that fit; ``cluster.vast.search`` makes queries and sees more than one page.

        Raises:
            SearchQuotaExceeded: until when; nothing helps before.
        """
        answer = await self._exchange.repeatable(Endpoint.SEARCH, "POST", "/api/v0/bundles/", body=query)
        offers: list[Offer] = []
        unreadable: list[str] = []
        for record in _records(answer, "offers"):
            try:
                offers.append(_read(Offer, record))
            except _Unreadable as error:
                unreadable.append(str(error))
        return Page(tuple(offers), tuple(unreadable))

    async def rent(self, request: RentRequest) -> Instance:
        """Rent it, and look that it is what was asked for. Takes a minute or two where Vast does not answer properly.

        Whoever is cancelled in here may have rented something: look for the request's label.

        Raises:
            OfferGone: try another.
            Ambiguous: it may have been rented.
            BadRental: it was, but not on these terms; it is destroyed, unless the error says otherwise.
        """
        return await renting.rent(request, self._exchange, self)

    async def instances(self) -> tuple[Instance, ...]:
        """All that the account has. One that is a few seconds old may be missing. All or an error: never a part."""
        found: dict[int, Instance] = {}
        params = {"limit": str(_PAGE)}
        tokens: set[str] = set()
        for _ in range(_MOST_PAGES):
            answer = await self._exchange.repeatable(Endpoint.LIST, "GET", "/api/v1/instances/", params=params)
            for record in _records(answer, "instances"):
                instance = _instance(record)
                found[instance.id] = instance
            token = (answer.data or {}).get("next_token")
            if not token:
                return tuple(found.values())
            if str(token) in tokens:
                break
            tokens.add(str(token))
            params = {**params, "after_token": str(token)}
        raise Unavailable("Vast's list of instances does not end.")

    async def show(self, instance_id: int) -> Instance | None:
        """None if there is none: destroyed, or a few seconds old."""
        answer = await self._exchange.repeatable(
            Endpoint.SHOW,
            "GET",
            f"/api/v0/instances/{instance_id}/",
            params={"owner": "me"},
            fine=lambda answer: answer.ok or _is_gone(answer),
        )
        if _is_gone(answer):
            return None
        if answer.data is None or "instances" not in answer.data:
            raise Unavailable("Vast's answer names no instance.")
        record = answer.data["instances"]
        # A list of one is what the older list made of it.
        if isinstance(record, list):
            record = record[0] if record else None
        return None if record is None else _instance(record)

    async def destroy(self, instance_id: int) -> None:
        """Give it back, with all that is on its disk. It is fine if it is gone already."""
        await self._exchange.repeatable(
            Endpoint.DESTROY,
            "DELETE",
            f"/api/v0/instances/{instance_id}/",
            body={},
            fine=lambda answer: answer.ok or _is_gone(answer),
        )
        log.info("vast.destroyed", instance_id=instance_id)

    async def credit(self) -> float:
        """Dollars left to spend."""
        answer = await self._exchange.repeatable(Endpoint.ACCOUNT, "GET", "/api/v0/users/current/")
        credit = (answer.data or {}).get("credit")
        if not isinstance(credit, int | float):
            raise Unavailable("Vast's answer names no credit.")
        return float(credit)

    async def charges(self, since: datetime, until: datetime) -> Mapping[int, float]:
        """Dollars by instance, gone ones too, of the days (UTC) on which these moments are and those between them.

        Vast rounds them, and the last hours may be missing.
        """
        begin, end = since.timestamp() // _DAY_S * _DAY_S, (until.timestamp() // _DAY_S + 1) * _DAY_S - 1
        days = {"day": {"gte": int(begin), "lte": int(end)}, "type": {"in": ["instance"]}}
        found: defaultdict[int, float] = defaultdict(float)
        params = {"select_filters": json.dumps(days), "limit": str(_CHARGES_PAGE)}
        tokens: set[str] = set()
        for _ in range(_MOST_PAGES):
            answer = await self._exchange.repeatable(Endpoint.CHARGES, "GET", "/api/v0/charges/", params=params)
            for record in _records(answer, "results"):
                instance_id, usd = _charge(record)
                found[instance_id] += usd
            token = (answer.data or {}).get("next_token")
            if not token:
                return found
            if str(token) in tokens:
                break
            tokens.add(str(token))
            params = {**params, "after_token": str(token)}
        raise Unavailable("Vast's list of charges does not end.")


class _Unreadable(Exception):
    """Names the fields at fault, not what is in them: a record may hold anything."""


def _read(kind: type[_Record], record: Any) -> _Record:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        fields = {".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False, include_url=False)}
        raise _Unreadable(", ".join(sorted(fields)) or "no object") from None


def _instance(record: Any) -> Instance:
    try:
        return _read(Instance, record)
    except _Unreadable as error:
        # Passing it over would hide a machine that costs money.
        raise Unavailable(f"A record of an instance can't be read ({error}).") from None


def _charge(record: Any) -> tuple[int, float]:
    """Whose it is, and dollars."""
    try:
        number = str(record["source"]).removeprefix("instance-")
        return int(number), float(record["amount"])
    except (KeyError, TypeError, ValueError):
        # Passing it over would make a sum that is too small.
        raise Unavailable("A record of a charge can't be read.") from None


def _records(answer: Answer, name: str) -> list[Any]:
    records = (answer.data or {}).get(name)
    if not isinstance(records, list):
        raise Unavailable(f"Vast's answer holds no {name}.")
    return records


def _is_gone(answer: Answer) -> bool:
    # 404 without an object is not Vast's, but of a server that has no such path.
    return answer.says("no_such_instance") or (answer.status in (404, 410) and answer.data is not None)
