"""Who may do what, over all slots and ports."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.mesh.admission import authenticate, has_been_invited, may_dial, may_open
from cluster.mesh.identity import HubIdentity, digest, new_key
from cluster.mesh.plan import HEAD, SLOTS, slot
from cluster.mesh.registry import Node
from cluster.mesh.wire import Accept, Hello, Open, Reason
from tests.ports import block

HUB = HubIdentity.derived(b"a secret of thirty-two bytes....")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = {number: bytes([number]) * 32 for number in (2, 3, 4)}


def node(number: int, *, joined: bool = True, revoked: bool = False) -> Node:
    return Node(
        slot=number,
        name="node",
        token_hash=digest(b"token" + bytes([number])),
        token_expires_at=NOW,
        key_hash=digest(KEYS[number]) if joined else None,
        joined_at=NOW if joined else None,
        revoked_at=NOW if revoked else None,
    )


NODES = {2: node(2), 3: node(3, revoked=True), 4: node(4, joined=False)}


@pytest.mark.parametrize("kind", ["hello", "open", "accept"])
@pytest.mark.parametrize(
    ("number", "key", "reason"),
    [
        (2, KEYS[2], None),
        (2, KEYS[3], Reason.BAD_KEY),
        (2, bytes(32), Reason.BAD_KEY),
        (3, KEYS[3], Reason.REVOKED),
        # Whoever does not have the key is not told that there was such a node.
        (3, KEYS[2], Reason.BAD_KEY),
        (4, KEYS[4], Reason.BAD_KEY),
        (5, KEYS[2], Reason.BAD_KEY),
        (1, KEYS[2], Reason.BAD_KEY),
    ],
)
def test_only_the_key_of_a_live_node_opens_its_slot(kind: str, number: int, key: bytes, reason: Reason | None) -> None:
    frame = {
        "hello": Hello(number, key, bytes(16)),
        "open": Open(number, key, 1, HEAD.gcs),
        "accept": Accept(number, key, bytes(16)),
    }[kind]
    assert authenticate(NODES, frame) == (reason if reason is not None else NODES[number])


def test_a_hash_is_no_key() -> None:
    """Who reads the registry can't come in with what is there."""
    assert authenticate(NODES, Hello(2, digest(KEYS[2]), bytes(16))) is Reason.BAD_KEY


def test_invitations_are_known_by_their_mark_or_by_the_list() -> None:
    assert has_been_invited(HUB, {}, HUB.invitation().secret)
    assert not has_been_invited(HubIdentity.derived(bytes(32)), {}, HUB.invitation().secret)
    assert not has_been_invited(HUB, NODES, new_key())
    assert has_been_invited(HUB, NODES, b"token" + bytes([4]))


numbers = st.integers(1, SLOTS)
ports = st.integers(0, 65535) | numbers.flatmap(lambda number: st.sampled_from(block(slot(number))))


@given(st.integers(0, 65535), ports)
def test_a_node_reaches_the_head_alone(target: int, port: int) -> None:
    needed = {HEAD.node_manager, HEAD.object_manager, HEAD.gcs, HEAD.http, *HEAD.workers}
    frame = Open(2, KEYS[2], target, port)
    assert may_open(frame, ()) == (target == 1 and port in needed)
    assert may_open(frame, {HEAD.briefing}) == (target == 1 and port in {*needed, HEAD.briefing})


def test_every_port_of_the_head() -> None:
    open_ports = [port for port in range(65536) if may_open(Open(2, KEYS[2], 1, port), ())]
    assert open_ports == sorted(HEAD.forwarded)


@given(numbers, ports)
def test_a_node_lets_its_hub_reach_what_ray_needs_there(number: int, port: int) -> None:
    own = slot(number)
    assert may_dial(own, port) == (port in own.forwarded)
    assert not (may_dial(own, port) and port not in block(own))
