"""``Prefer: wait=n`` (RFC 7240): an answer that is held until the job has ended, for ``n`` seconds at most.

The gate grants it, since it costs a place among the streams (``api/gate.py``). Where none is free the preference is
ignored, as it may be.
"""

import asyncio
import re
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.types import Receive
from starlette.types import Scope as AsgiScope

from serve_app.jobs.feed import FeedEnded
from serve_app.jobs.job import Job
from serve_app.jobs.reads import Seen
from serve_app.services import Services

#: Seconds; more is taken as this.
MAX_WAIT_S = 60
#: Where a request's scope has the seconds that were granted.
_GRANTED = "video_api.wait_s"

#: One preference with its parameters: ``wait=10; x="a, b"``, up to a comma that is in no quoted text. A text without an
#: end goes on to the end of all, and never is one read twice: else it would be from each of its quotes.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+(?:"|\\?$))+', re.DOTALL)
_WAIT = re.compile(r'\s*wait\s*=\s*(?:"(\d+)"|(\d+))\s*(?:;.*)?', re.IGNORECASE | re.ASCII | re.DOTALL)


def wait_s(headers: Iterable[str]) -> int:
    """Seconds, by the values of all ``Prefer`` headers; 0: not asked for. The first of several counts."""
    for preference in _PREFERENCE.findall(",".join(headers)):
        if found := _WAIT.fullmatch(preference):
            digits = found[1] or found[2]
            # Of thousands of digits Python makes no number.
            return MAX_WAIT_S if len(digits.lstrip("0")) > 2 else min(int(digits[-2:]), MAX_WAIT_S)
    return 0


def grant(scope: AsgiScope, seconds: int) -> None:
    """Let the request's answer take so much longer."""
    scope[_GRANTED] = seconds


async def _granted(
    request: Request,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=n` holds the answer until the job has ended, for n seconds at most (60 where it is "
            "more). `Preference-Applied` says that it was; while all streams are taken it is not."
        ),
    ] = None,
) -> int:
    del prefer  # Of several such headers it would be the last.
    seconds: int = request.scope.get(_GRANTED, 0)
    return seconds


#: Seconds for which the answer may be held; 0: not at all.
WaitGranted = Annotated[int, Depends(_granted)]


def applied(seconds: int) -> dict[str, str]:
    """Headers of an answer that was held."""
    return {"preference-applied": f"wait={seconds}"}


async def held(job: Job, seconds: float, receive: Receive, services: Services) -> Seen | None:
    """The job as it is when it has ended, or after so long. None: it is deleted. At once where the client leaves, or
    the service stops."""
    if job.status.terminal:
        return await services.reads.get(job.id)
    ending = asyncio.ensure_future(_end(job, services))
    leaving = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({ending, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(ending, leaving)
    return await services.reads.get(job.id)


async def _end(job: Job, services: Services) -> None:
    try:
        with services.feed.watch(job.id) as watch:
            shown = await watch.next()
            while shown is not None and not shown.ended:
                shown = await watch.next()
    except FeedEnded:
        return


async def left(receive: Receive) -> None:
    """Until the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(*tasks: "asyncio.Future[None]") -> None:
    """End them. Raises what the first of them has raised."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
