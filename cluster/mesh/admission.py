"""Who may do what in the mesh, decided over nodes, slots and ports alone.

A node may reach the head at the ports that Ray needs there, and the head a node at those that it needs there. Nodes
don't reach each other: nothing of ours asks for it, and what goes wrong on a rented machine stays on it.
"""

import hmac
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.plan import HEAD, Slot
from cluster.mesh.wire import Accept, Hello, Open, Reason

if TYPE_CHECKING:
    # A node has no registry, and would load SQLAlchemy for the sake of a type.
    from cluster.mesh.registry import Node


def authenticate(nodes: "Mapping[int, Node]", frame: Hello | Open | Accept) -> "Node | Reason":
    """The node whose slot and key the frame shows, or why it is not let in."""
    node = nodes.get(frame.slot)
    if node is None or node.key_hash is None or not hmac.compare_digest(node.key_hash, digest(frame.key)):
        return Reason.BAD_KEY
    return Reason.REVOKED if node.revoked_at is not None else node


def has_been_invited(hub: HubIdentity, nodes: "Mapping[int, Node]", secret: bytes) -> bool:
    """Whether there has been an invitation with that secret. A made-up one costs no query of the registry."""
    # The second is for invitations of an older hub, whose secrets had no mark.
    return hub.has_made(secret) or digest(secret) in {node.token_hash for node in nodes.values()}


def may_open(frame: Open, fixed_answers: Container[int]) -> bool:
    """Whether a node may have that flow: to the head alone, at a forwarded port or one with a fixed answer."""
    return frame.target == HEAD.number and (frame.port in HEAD.forwarded or frame.port in fixed_answers)


def may_dial(own: Slot, port: int) -> bool:
    """Whether a node connects to that port of its own machine when its hub asks: not even that has a way to others."""
    return port in own.forwarded
