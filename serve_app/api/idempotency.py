"""The ``Idempotency-Key`` header, by draft-ietf-httpapi-idempotency-key-header-07.

The draft wants a quoted string (RFC 8941); most clients send the bare value. Both are taken, and mean the same key.
"""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema

from serve_app.access.caller import Caller
from serve_app.api.errors import IdempotencyInFlight, IdempotencyKeyReused, InvalidRequest, VideoApiError
from serve_app.jobs.idempotency import Answer, IdempotencyKey, KeyInFlight, KeyReused
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore

NAME = "Idempotency-Key"
MAX_LENGTH = 255
#: Of an answer that was given before.
REPLAYED = "idempotency-replayed"

#: Without commas, bare: two headers that somebody has joined are no key.
_KEY = re.compile(
    rf'(?P<bare>[!#-+\--~]{{1,{MAX_LENGTH}}})|"(?P<quoted>(?:[ !#-\[\]-~]|\\["\\]){{1,{MAX_LENGTH}}})"', re.ASCII
)


def parse(header: str) -> str:
    """The key. ValueError, with what is wrong, unless it is one."""
    found = _KEY.fullmatch(header.strip(" \t"))
    if found is None:
        raise ValueError(
            f"must be 1 to {MAX_LENGTH} visible ASCII characters without quotes and commas, or a string in quotes"
        )
    return found["bare"] or re.sub(r"\\(.)", r"\1", found["quoted"])


def fingerprint(asked: Mapping[str, Any]) -> str:
    """SHA-256 of what was asked for, as JSON values: the order of keys and the blanks between them mean nothing."""
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


async def _given(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias=NAME,
            description="Any string that is new for this request, e.g. a UUID, quoted or bare. A request that "
            "comes again with it within 24 hours is answered as it was the first time, with "
            "`Idempotency-Replayed: true`, and nothing is done twice. Errors are not kept.",
        ),
        WithJsonSchema({"type": "string", "pattern": f"^(?:{re.sub('[?]P<[a-z]+>', '?:', _KEY.pattern)})$"}),
    ] = None,
) -> str | None:
    if idempotency_key is None:
        return None
    given = request.headers.getlist(NAME)
    try:
        if len(given) > 1:
            raise ValueError("is given twice")
        return parse(given[0])
    except ValueError as error:
        raise InvalidRequest(f"{NAME}: {error}.", param=NAME) from None


#: The request's key, if it has one.
IdempotencyKeyOf = Annotated[str | None, Depends(_given)]


def keyed(value: str | None, caller: Caller, route: str, asked: Mapping[str, Any]) -> IdempotencyKey | None:
    """The key of a request that asks ``route`` for ``asked``; None if it has none."""
    if value is None:
        return None
    return IdempotencyKey(key_id=caller.key_id, route=route, value=value, fingerprint=fingerprint(asked))


async def answer_once(
    key: IdempotencyKey, store: JobStore, submit: Callable[[], Awaitable[tuple[Job | None, Answer]]]
) -> tuple[Answer, bool]:
    """What the first request with ``key`` was answered with, and whether that was another one. ``submit`` is asked if
    none was yet, and says by a job that it was this one.

    Raises:
        IdempotencyKeyReused, IdempotencyInFlight
    """
    try:
        if (given := await store.answered(key)) is not None:
            return given, True
        try:
            job, answer = await submit()
        except VideoApiError:
            # Another one may have been faster since: then what he has done stands in the way, e.g. of an upload.
            if (given := await store.answered(key)) is not None:
                return given, True
            raise
    except KeyReused:
        raise IdempotencyKeyReused(param=NAME) from None
    except KeyInFlight:
        raise IdempotencyInFlight(headers={"retry-after": "1", "x-should-retry": "true"}) from None
    return answer, job is None
