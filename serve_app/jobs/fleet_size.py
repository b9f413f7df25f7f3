"""How many machines the work at hand is worth, and how much of it is handed over so that Serve asks for as many.

What decides the size of a rented fleet is here alone: Serve starts replicas for the calls that wait, Ray wishes for
nodes for its replicas, and the launcher rents what is wished for.
"""

from dataclasses import dataclass
from math import ceil

#: Calls in flight for which Serve wants a replica: one computes, one is being prepared or encoded beside it.
CALLS_PER_REPLICA = 2
#: What a machine costs beside its work: its start, and its idle time after it, which is about as long.
_STARTS = 2
#: Seconds. What is measured may be nothing.
_LEAST_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a model's deployment is, and may become."""

    #: Replicas.
    running: int
    most: int
    #: Tasks that one takes at a time.
    slots: int


def machines(*, backlog: int, run_s: float, start_s: float, running: int, most: int) -> int:
    """How many machines are worth having for so many jobs, those in flight among them.

    So many that each gets about two starts' worth of work: ``backlog * run_s / (2 * start_s)``, rounded up. A machine
    costs as much while it starts as while it works, and is kept for about as long again when there is nothing left to
    do. One that would get less would be paid longer for that than for its work; and as long as the first is done with
    the queue within two starts, a second would have little left when it is ready. Where a job takes longer than that,
    there is one machine a job at most: more could not share it.

    A replica that runs is used as long as there is a job for it: its start is paid. Otherwise the end of a queue would
    be left to fewer and fewer machines while others idle beside them.

    It does not flap. Another machine is asked for only when the backlog has grown by two starts' worth of work. As it
    shrinks fewer are, but nothing is taken back: calls in flight stay, and Serve stops a replica only after fewer were
    wanted for its whole ``downscale_delay_s``; until then it counts as running, and gets the next jobs.
    """
    # A quotient of floats may be a little more than it is.
    worth = min(ceil(backlog * run_s / max(_STARTS * start_s, run_s, _LEAST_S)), backlog)
    return min(max(worth, min(running, backlog), 1), most)


def window(target: int, capacity: Capacity) -> int:
    """Tasks in flight for which Serve wants ``target`` replicas: each more would be a wish for another.

    At the most there are, a wish for more does no harm: then all slots are filled, and one task waits for the next that
    is free.
    """
    return target * CALLS_PER_REPLICA if target < capacity.most else capacity.most * capacity.slots + 1
