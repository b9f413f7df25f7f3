"""Why the fleet rents nothing, in the words of the service: the launcher writes it down, and jobs say it."""

from collections.abc import Mapping
from types import MappingProxyType

from cluster.fleet.waiting import Reason, Wait
from serve_app.jobs.conditions import Condition, WaitCode

#: Clients need not know what the operator can do about it: the message says that.
CODES: Mapping[Reason, WaitCode] = MappingProxyType(
    {
        Reason.NODES_CAP: WaitCode.CAP_REACHED,
        Reason.PRICE_CAP: WaitCode.CAP_REACHED,
        Reason.HOUR_CAP: WaitCode.CAP_REACHED,
        Reason.DAY_CAP: WaitCode.CAP_REACHED,
        Reason.NO_OFFER: WaitCode.NO_MACHINE,
        Reason.FAILURES: WaitCode.NO_MACHINE,
        Reason.NOT_ALLOWED: WaitCode.NO_MACHINE,
        Reason.REFUSED: WaitCode.NO_MACHINE,
        Reason.PROVIDER: WaitCode.NO_MACHINE,
        Reason.DOOR: WaitCode.NO_MACHINE,
        Reason.NO_CREDIT: WaitCode.NO_CREDIT,
        Reason.NO_WEIGHTS: WaitCode.WEIGHTS_UNAVAILABLE,
    }
)


def condition_of(wait: Wait) -> Condition:
    """What a job that waits for a machine says."""
    reason = wait.reason.meaning
    message = f"{reason.removesuffix('.')} ({wait.detail})." if wait.detail else reason
    return Condition(CODES[wait.reason], message)
