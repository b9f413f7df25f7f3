"""What a node says of itself, from the first seconds of its bootstrap on."""

from dataclasses import dataclass, replace
from datetime import datetime

from cluster.fleet.rental import State

#: A fault that begins so is no node's own: none of its type could fetch them.
WEIGHTS_FAULT = "weights: "


@dataclass(frozen=True, kw_only=True)
class Report:
    """It may lie: everything in it is bounded by the time limits and by what the provider's list says."""

    label: str
    #: When it was heard.
    at: datetime
    state: State
    #: Since its start, without the image, which its host has fetched.
    down_bytes: float = 0.0
    up_bytes: float = 0.0
    #: Seconds until the end of this step at its measured rate; None where it can't say.
    left_s: float | None = None
    #: Why it can't go on; empty if it can.
    fault: str = ""
    #: False: the head knows of its work from elsewhere. Whether it works or waits a node itself does not know.
    by_node: bool = True

    def beside(self, before: "Report | None") -> "Report":
        """With the most that it has ever said to have fetched and sent: what was claimed once stays claimed."""
        if before is None:
            return self
        down_bytes, up_bytes = max(self.down_bytes, before.down_bytes), max(self.up_bytes, before.up_bytes)
        return replace(self, down_bytes=down_bytes, up_bytes=up_bytes)
