"""What nodes say of themselves, as it comes over the mesh: read with suspicion."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.fleet.rental import Rental, State
from cluster.fleet.report import Report
from cluster.fleet.words import written

#: What a node knows of itself. Whether it works the head knows better.
_Step = Literal[State.INSTALLING, State.WEIGHTS, State.JOINING, State.IDLE]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: No line is faster. What a node says to have fetched is paid for, in the books.
_BYTES_PER_S = 1.25e9


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore")

    state: _Step
    #: Bytes since its start.
    down: _Amount = 0.0
    up: _Amount = 0.0
    left_s: _Amount | None = None
    fault: Annotated[str, Field(max_length=1000)] = ""


def read(text: str, rental: Rental, now: datetime) -> Report:
    """Raises ValueError if it is no report."""
    said = _Said.model_validate_json(text)
    begun = rental.begun_at or rental.reserved_at
    most = max(0.0, (now - begun).total_seconds()) * _BYTES_PER_S
    return Report(
        label=rental.label,
        at=now,
        state=said.state,
        down_bytes=min(said.down, most),
        up_bytes=min(said.up, most),
        left_s=said.left_s,
        fault=written(said.fault).strip(),
    )
