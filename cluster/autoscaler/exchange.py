"""One line of JSON there, one back. Either may be sent again: it says how things should be, not what has happened."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Bytes of a line. More nodes than the mesh has slots for fit in.
MOST_BYTES = 1 << 17

#: Wishes of a kind in a line, and bytes of a node type's name: so many fit in.
MOST_WISHES, MOST_TYPE_BYTES = 400, 64

SlotId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]
NodeType = Annotated[str, Field(min_length=1, max_length=MOST_TYPE_BYTES)]


class Wishes(BaseModel):
    """What Ray wants."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: New slots, by the id that Ray knows each by from now on, with its node type.
    add: dict[SlotId, NodeType] = Field(default_factory=dict, max_length=MOST_WISHES)
    #: Slots that are to go, whatever they do.
    dismiss: frozenset[SlotId] = Field(default_factory=frozenset, max_length=MOST_WISHES)


class Standing(BaseModel):
    """What there is, once those wishes are known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: Every node and every slot that waits for one: its id, and its type.
    nodes: dict[str, str]
