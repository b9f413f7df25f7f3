"""What the fleet is asked for."""

from dataclasses import dataclass

#: Of one type. The mesh has slots for so many nodes.
MOST_NODES = 350


@dataclass(frozen=True)
class Wish:
    """So many nodes of a type, those that there are included. Raises ValueError."""

    node_type: str
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST_NODES:
            raise ValueError(f"count: 0 to {MOST_NODES}")
