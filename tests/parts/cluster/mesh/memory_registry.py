"""Nodes that are forgotten with the process: a registry without a database."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cluster.mesh.counters import Total
from cluster.mesh.plan import SLOTS
from cluster.mesh.registry import QUARANTINE_S, Node, NoFreeSlot, Sighting, check_redeemable


class MemoryRegistry:
    """As :class:`cluster.mesh.registry.NodeRegistry` promises; the same tests hold both."""

    def __init__(
        self, quarantine_s: float = QUARANTINE_S, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._quarantine = timedelta(seconds=quarantine_s)
        self._clock = clock
        self._nodes: dict[int, Node] = {}

    async def invite(self, name: str, secret_hash: bytes, ttl_s: float) -> int:
        now = self._clock()
        for slot in range(2, SLOTS + 1):
            if slot not in self._nodes or self._is_free(self._nodes[slot], now):
                self._nodes[slot] = Node(slot, name, secret_hash, now + timedelta(seconds=ttl_s))
                return slot
        raise NoFreeSlot

    async def redeem(self, secret_hash: bytes, key_hash: bytes, name: str) -> Node:
        node = await self.find(secret_hash)
        check_redeemable(node, key_hash, self._clock())
        assert node is not None
        if node.key_hash is None:
            node = replace(node, key_hash=key_hash, joined_at=self._clock(), name=name or node.name)
            self._nodes[node.slot] = node
        return node

    async def nodes(self) -> Sequence[Node]:
        return [self._nodes[slot] for slot in sorted(self._nodes)]

    async def find(self, token_hash: bytes) -> Node | None:
        return next((node for node in self._nodes.values() if node.token_hash == token_hash), None)

    async def revoke_token(self, token_hash: bytes) -> bool:
        node = await self.find(token_hash)
        return node is not None and await self.revoke(node.slot)

    async def revoke(self, slot: int) -> bool:
        node = self._nodes.get(slot)
        if node is None or node.revoked_at is not None:
            return False
        self._nodes[slot] = replace(node, revoked_at=self._clock())
        return True

    async def report(self, sightings: Iterable[Sighting], counted: Mapping[Total, int]) -> None:
        """The counters are of no use to anybody here."""
        for seen in sightings:
            node = self._nodes.get(seen.slot)
            if node is not None and node.key_hash == seen.key_hash:
                self._nodes[seen.slot] = replace(
                    node,
                    last_seen_at=self._clock(),
                    bytes_in=node.bytes_in + seen.bytes_in,
                    bytes_out=node.bytes_out + seen.bytes_out,
                )

    def _is_free(self, node: Node, now: datetime) -> bool:
        if node.revoked_at is not None:
            return node.joined_at is None or node.revoked_at + self._quarantine <= now
        return node.joined_at is None and node.token_expires_at <= now
