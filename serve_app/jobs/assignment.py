"""Which of a model's deployments is to make a job: the smallest class of GPUs that can.

Decided when a job comes, by what replicas have said of themselves, and by what is expected of those that have not; and
once more when it is handed over, since either may have changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from deployments.contract import ANY_SIZE


class TooLarge(Exception):
    """No GPU that there is, or could be rented, can make it: its memory is too small, or none makes this variant."""

    def __init__(self, variant: str, size: int, most: Mapping[str, int]) -> None:
        super().__init__(variant, size)
        self.variant = variant
        self.size = size
        #: By variant the largest that can be made; ``""`` is the default one.
        self.most = most

    @property
    def unavailable(self) -> bool:
        """Not a matter of size."""
        return not self.most[self.variant]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A deployment, and what can be asked of it."""

    deployment: str
    #: GiB of its GPUs; None: of whatever node takes it.
    gib: int | None
    #: The largest size by variant; None: whatever its model takes.
    sizes: Mapping[str, int] | None
    #: What ``""`` means; ``""``: nobody knows.
    default_variant: str = ""
    #: A node of it is there, or can be rented.
    had: bool = True

    def most(self, variant: str) -> int:
        """The largest size of this variant; 0: none. Of a default that nobody knows, the least of all."""
        if self.sizes is None:
            return ANY_SIZE
        named = variant or self.default_variant
        if named in self.sizes:
            return self.sizes[named]
        return 0 if named else min(self.sizes.values(), default=0)


def at_hand(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those of a model that count. Where none is to be had, nodes have yet to join: then the largest, which can make
    most."""
    return [candidate for candidate in candidates if candidate.had] or [max(candidates, key=_memory)]


def smallest(candidates: Iterable[Candidate], variant: str, size: int) -> str | None:
    """The deployment with the least memory that can make it."""
    able = [candidate for candidate in candidates if candidate.most(variant) >= size]
    best = min(able, key=_memory, default=None)
    return None if best is None else best.deployment


def assign(candidates: Sequence[Candidate], variant: str, size: int) -> str:
    """Of a new job. Raises :class:`TooLarge`."""
    counting = at_hand(candidates)
    found = smallest(counting, variant, size)
    if found is None:
        raise _too_large(counting, variant, size)
    return found


def reassign(candidates: Sequence[Candidate], now: str, variant: str, size: int) -> str:
    """Of a job that waits for the deployment ``now``: where it stays if it can be made there. Otherwise another is
    looked for, first among those at hand. Raises :class:`TooLarge` if there is none, whatever joins."""
    counting = at_hand(candidates)
    for among in (counting, candidates):
        stays = [candidate for candidate in among if candidate.deployment == now]
        if (found := smallest(stays, variant, size) or smallest(among, variant, size)) is not None:
            return found
    raise _too_large(candidates, variant, size)


def _too_large(candidates: Sequence[Candidate], variant: str, size: int) -> TooLarge:
    names = {variant, *(name for candidate in candidates for name in candidate.sizes or ())}
    return TooLarge(variant, size, {name: max(each.most(name) for each in candidates) for name in names})


def _memory(candidate: Candidate) -> float:
    return inf if candidate.gib is None else candidate.gib
