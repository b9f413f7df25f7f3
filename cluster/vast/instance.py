"""A machine that was rented."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


_Text = Annotated[str | None, WrapValidator(_or_none)]
_Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, WrapValidator(_or_none)]
_Flag = Annotated[bool | None, WrapValidator(_or_none)]


class Instance(BaseModel):
    """Only the id has to be there: a record that can't be read is an instance that costs money and that nobody sees.

    A field that is missing, null or of a kind that Vast never had before is None.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    label: _Text = None
    machine_id: Annotated[int | None, WrapValidator(_or_none)] = None
    #: None, ``created``, ``loading``, ``running``, ``exited``, ``offline``, ``stopped``, and others to come.
    actual_status: _Text = None
    #: ``stopped`` without our doing: somebody else has bid more.
    intended_status: _Text = None
    status_msg: _Text = None
    is_bid: _Flag = None
    #: Dollars per hour, storage included.
    dph_total: _Number = None
    #: When it was rented, in Unix time.
    start_date: _Number = None
