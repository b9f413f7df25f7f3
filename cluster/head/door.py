"""The fleet's :class:`~cluster.fleet.door.Door`: invitations to the mesh, and their end."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from cluster.fleet.door import Admission, DoorFull, Guest
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.registry import Node, NodeRegistry, NoFreeSlot

#: Seconds in which a rented machine has to join. Longer than its start may take in all; it is revoked if that fails.
_INVITED_S = 3 * 3600.0
#: Seconds after which a node that was seen no more is not there. One waits for so long for its head.
_AWAY_S = 900.0


class MeshDoor:
    """``hub_address`` is how nodes reach the head."""

    def __init__(
        self,
        registry: NodeRegistry,
        identity: HubIdentity,
        hub: Hub,
        *,
        hub_address: str,
        by_hand: str,
        is_rented: Callable[[Node], bool],
    ) -> None:
        """``by_hand`` is the type of nodes that nobody here has rented. Which those are ``is_rented`` says: nodes name
        themselves as they like."""
        self._registry, self._identity, self._hub = registry, identity, hub
        self._address, self._by_hand, self._is_rented = hub_address, by_hand, is_rented

    async def admit(self, label: str) -> Admission:
        invitation = self._identity.invitation()
        secret_hash = digest(invitation.secret)
        try:
            await self._registry.invite(label, secret_hash, _INVITED_S)
        except NoFreeSlot as error:
            raise DoorFull from error
        variables: Mapping[str, str] = {"HUB": self._address, "MESH_TOKEN": invitation.token()}
        return Admission(secret_hash.hex(), variables)

    async def revoke(self, key: str) -> None:
        if await self._registry.revoke_token(bytes.fromhex(key)):
            # Its connections end now, and not when the registry is next read.
            await self._hub.sync()

    async def guests(self) -> Sequence[Guest]:
        since = datetime.now(UTC) - timedelta(seconds=_AWAY_S)
        return [
            Guest(by_hand_id(node), self._by_hand)
            for node in await self._registry.nodes()
            if node.live and not self._is_rented(node) and _seen_at(node) > since
        ]


def _seen_at(node: Node) -> datetime:
    """Of one that has joined."""
    seen_at = node.last_seen_at or node.joined_at
    assert seen_at is not None
    return seen_at


def by_hand_id(node: Node) -> str:
    """What a node that joined by hand calls itself to Ray; it knows it by its invitation."""
    return f"hand-{node.token_hash.hex()[:12]}"
