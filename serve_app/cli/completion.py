"""What a shell offers at the Tab key: models and jobs of the service, if it answers soon.

A shell shows whatever is printed while somebody types, so nothing is. Where the service can't be asked, nothing is
offered.
"""

import contextlib
import io
import threading
from collections.abc import Callable, Sequence

import typer

from serve_app.cli.address import address
from serve_app.client import Client

#: Seconds that somebody waits for an offer, names and connections included.
ANSWER_S = 1.5
#: Of the newest jobs.
_JOBS = 50

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
            # The command line is only half there, so its session isn't either.
            given = ctx.find_root().params
            with Client(*address(given.get("url") or "", given.get("key") or ""), timeout_s=ANSWER_S) as client:
                offers.extend(ask(client))
        except Exception:  # noqa: S110 - whatever it is, here is not the place to say it
            pass

    # A thread, since not everything that may take long takes a time-out.
    asking = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stderr(io.StringIO()):
        asking.start()
        asking.join(ANSWER_S)
    return [each for each in tuple(offers) if each[0].startswith(incomplete)]
