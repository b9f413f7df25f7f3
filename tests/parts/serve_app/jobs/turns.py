"""Whose turn it is, in plain Python: what the SQL of ``claim.py`` has to come to, one job after the other."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TypeVar

J = TypeVar("J")
U = TypeVar("U")


def take_turns(
    lines: Mapping[U, Sequence[J]],
    held: Mapping[U, int],
    served: MutableMapping[U, int],
    room: int,
    better: Callable[[J], tuple[float, ...]],
) -> list[J]:
    """The next ``room`` jobs. ``lines`` has each user's waiting jobs, best first; ``held`` counts those in flight.

    Next is who holds least, then who was served longest ago (``served``, which is kept), then whose job is better.
    """
    waiting = {user: list(line) for user, line in lines.items() if line}
    holds = {user: held.get(user, 0) for user in waiting}
    turn = max(served.values(), default=0)
    chosen = []
    while waiting and len(chosen) < room:
        user = min(waiting, key=lambda user: (holds[user], served.get(user, 0), better(waiting[user][0])))
        chosen.append(waiting[user].pop(0))
        if not waiting[user]:
            del waiting[user]
        holds[user] += 1
        turn += 1
        served[user] = turn
    return chosen
