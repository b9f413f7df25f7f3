"""Whose turn it is, in plain Python: what the SQL of ``claim.py`` has to come to, one job after the other."""

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TypeVar

J = TypeVar("J")
U = TypeVar("U")
#: A key and, of it, a user.
Owner = tuple[str, str | None]


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


def take_turns_of_keys(
    lines: Mapping[Owner, Sequence[J]],
    held: Mapping[Owner, int],
    served: MutableMapping[Owner, int],
    room: int,
    better: Callable[[J], tuple[float, ...]],
    most: Mapping[str, int] | None = None,
) -> list[J]:
    """The same of keys, each of which sends its next by the turns of its users; at most ``most`` of a key."""
    left = {key: max(0, number) for key, number in (most or {}).items()}
    waiting = {owner: list(line) for owner, line in lines.items() if line}
    of_owner, of_key = Counter(held), Counter[str]()
    for owner, number in held.items():
        of_key[owner[0]] += number
    chosen: list[J] = []

    def following(key: str) -> tuple[Owner, J]:
        owners = [owner for owner in waiting if owner[0] == key]
        owner = min(owners, key=lambda it: (of_owner[it], served.get(it, 0), better(waiting[it][0])))
        return owner, waiting[owner][0]

    def latest(key: str) -> int:
        return max((turn for owner, turn in served.items() if owner[0] == key), default=0)

    while len(chosen) < room and (keys := {key for key, _ in waiting if left.get(key, 1)}):
        key = min(keys, key=lambda key: (of_key[key], latest(key), better(following(key)[1])))
        owner, job = following(key)
        chosen.append(job)
        waiting[owner].pop(0)
        if not waiting[owner]:
            del waiting[owner]
        of_owner[owner] += 1
        of_key[key] += 1
        if key in left:
            left[key] -= 1
        served[owner] = max(served.values(), default=0) + 1
    return chosen
