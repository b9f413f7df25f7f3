"""What a shell offers at the Tab key: models and jobs of the service, if it answers soon.

A shell shows whatever is printed while somebody types, so nothing is. Where the service can't be asked, nothing is
offered. Shells evaluate what they are offered, and the service is a stranger's, maybe: of its answers nothing passes
that a shell could read as code.
"""

import contextlib
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence

import typer

from serve_app.cli.address import address
from serve_app.client import Client

#: Seconds that somebody waits for an offer, names and connections included.
ANSWER_S = 1.5
#: Of the newest jobs.
_JOBS = 50
#: What may be put into a command line.
_WORD = re.compile(r"\w[\w.-]*", re.ASCII)
#: What is left out of the word about it.
_DOUBTFUL = re.compile(r"[^\w .,()-]+")

#: What is offered, and a word about it.
Offer = tuple[str, str]
Complete = Callable[[typer.Context, str], list[Offer]]


def models(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """The models of the service."""
    return _ask(ctx, incomplete, lambda client: [(each["model"], each["title"]) for each in client.models()])


def jobs(*statuses: str) -> Complete:
    """The newest jobs, of these statuses if any are named."""

    def ask(client: Client) -> Sequence[Offer]:
        found = client.jobs(limit=_JOBS)["data"]
        wanted = [each for each in found if not statuses or each["status"] in statuses]
        return [(each["job_id"], f"{each.get('model', '')} {each['status']}".strip()) for each in wanted]

    def complete(ctx: typer.Context, incomplete: str) -> list[Offer]:
        return _ask(ctx, incomplete, ask)

    return complete


def _ask(ctx: typer.Context, incomplete: str, ask: Callable[[Client], Sequence[Offer]]) -> list[Offer]:
    offers: list[Offer] = []

    def work() -> None:
        try:
            # The command line is only half there, so its session isn't either. Nor has anybody asked for anything yet,
            # so whatever folder this is has no say in where the key goes.
            given = ctx.find_root().params
            asked = address(given.get("url") or "", given.get("key") or "", env_file=None)
            with Client(*asked, timeout_s=ANSWER_S) as client:
                offers.extend(_harmless(ask(client)))
        except Exception:  # noqa: S110 - whatever it is, here is not the place to say it
            pass

    # A thread, since not everything that may take long takes a time-out.
    asking = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stderr(io.StringIO()):
        asking.start()
        asking.join(ANSWER_S)
    return [each for each in tuple(offers) if each[0].startswith(incomplete)]


def _harmless(offers: Sequence[Offer]) -> Iterator[Offer]:
    for value, about in offers:
        if _WORD.fullmatch(value):
            yield value, _DOUBTFUL.sub(" ", about).strip()
