"""What goes wrong in a running service, said once where it was started: by ``GET /health``, asked every few seconds."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve_app.client import ApiError, Client, Unreachable
from serve_app.serving.bounded import Bounded

EVERY_S = 3.0
#: A question that is not answered in this time is not answered. The service gives its own parts five seconds.
ANSWER_S = 15.0

#: Told of each change: the part or model, and why it is down; None when it works again.
Say = Callable[[str, str | None], object]

#: Numbers of processes, ports, ids: another one is no other reason.
_VARYING = re.compile(r"\w*\d\w*")


@contextmanager
def watching(url: str, say: Say, every_s: float = EVERY_S) -> Iterator[None]:
    """Watch the service at ``url`` while the body runs. Silent until it has answered once."""
    done = threading.Event()

    def watch() -> None:
        known: Mapping[str, str] | None = None
        before: Mapping[str, str] = {}
        with Client(url, "", timeout_s=ANSWER_S, transport=Bounded()) as client:
            while not done.wait(every_s):
                try:
                    answer = client.health()
                except (ApiError, Unreachable) as error:
                    if known is None:
                        continue
                    cause = error.reason if isinstance(error, Unreachable) else str(error)
                    # Of the parts nothing is known now, so nothing new.
                    found = {**before, "api": f"no answer from {url}: {cause}"}
                else:
                    if known is None and "database" not in answer:
                        # A head that waits for its turn; the service is not there yet.
                        continue
                    found = problems(answer)
                # Once may be a moment in which the machine was busy.
                lasting = {part: reason for part, reason in found.items() if part in before}
                before = found
                for part, reason in changes(known or {}, lasting).items():
                    say(part, reason)
                known = lasting

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def problems(found: Mapping[str, Any]) -> dict[str, str]:
    """What is down by this answer of ``/health``: parts of the service and models, each with its reason."""
    details: Mapping[str, Any] = found.get("details") or {}
    states = {part: found.get(part) for part in ("api", "database", "storage", "ray", "redis")}
    # Where Ray is down, so are the models, and it says why.
    if found.get("ray") != "down":
        states |= found.get("models") or {}
    down = [part for part, state in states.items() if state == "down" and part not in details]
    return {part: _line(reason) for part, reason in details.items()} | dict.fromkeys(down, "down")


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """What is new to be said: a part that is down now, or for another reason; None for one that works again."""
    new = {part: reason for part, reason in after.items() if _kind(reason) != _kind(before.get(part, ""))}
    return {**new, **dict.fromkeys(before.keys() - after.keys())}


def _kind(reason: str) -> str:
    return _VARYING.sub("#", reason)


def _line(reason: object) -> str:
    return " ".join(str(reason).split())
