"""The plan's arithmetic, for every slot and for whatever isn't one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.mesh.plan import HEAD, SLOTS, HeadSlot, Slot, slot, slots
from cluster.ray_process import slot_flags
from tests.ports import block

EPHEMERAL = range(32768, 65536)
numbers = st.integers(1, SLOTS)


def test_no_two_slots_share_a_port_or_an_address() -> None:
    ports = [port for one in slots() for port in block(one)]
    assert len(ports) == len(set(ports)) == 64 * SLOTS
    assert (min(ports), max(ports)) == (10240, 32767)
    assert SLOTS == 352
    assert len({one.address for one in slots()}) == SLOTS


@given(numbers)
def test_a_slot_stays_within_its_block(number: int) -> None:
    one = slot(number)
    named = [one.node_manager, one.object_manager, one.dashboard_agent_listen, one.dashboard_agent_grpc]
    named += [one.runtime_env_agent, one.metrics_export, *one.workers]
    if isinstance(one, HeadSlot):
        named += [one.gcs, one.dashboard, one.client_server, one.autoscaler_metrics, one.dashboard_metrics]
        named += [one.http, one.briefing]
    assert len(set(named)) == len(named)
    assert set(named) <= set(block(one))
    assert set(one.forwarded) <= set(named)
    assert len(set(one.forwarded)) == len(one.forwarded)
    assert not set(block(one)) & set(EPHEMERAL)


def test_no_two_slots_share_an_address_or_a_port() -> None:
    every = list(slots())
    addresses = {one.address for one in every}
    assert len(addresses) == len(every) == SLOTS
    assert len({port for one in every for port in block(one)}) == sum(len(block(one)) for one in every)
    # Some software takes these for a network or a broadcast.
    assert not [address for address in addresses if address.endswith((".0", ".255"))]
    assert all(address.startswith("127.77.") for address in addresses)


@pytest.mark.parametrize("number", [0, -1, SLOTS + 1])
def test_no_such_slot(number: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        slot(number)
    with pytest.raises(ValueError, match="head"):
        HeadSlot(2)


def test_the_head_and_the_first_node() -> None:
    assert (HEAD.address, slot(2).address, slot(254).address, slot(255).address, slot(SLOTS).address) == (
        "127.77.0.1",
        "127.77.0.2",
        "127.77.0.254",
        "127.77.1.1",
        "127.77.1.98",
    )
    assert slot(1) is HEAD
    # What a node reaches of the head, and the head of a node; said again here, so that a change of it is meant.
    assert set(HEAD.forwarded) == {10240, 10241, 10246, 10251, *range(10256, 10304)}
    assert set(slot(2).forwarded) == {10304, 10305, 10307, 10309, *range(10320, 10368)}
    assert slot_flags(slot(2)) == [
        "--node-ip-address=127.77.0.2",
        "--node-manager-port=10304",
        "--object-manager-port=10305",
        "--dashboard-agent-listen-port=10306",
        "--dashboard-agent-grpc-port=10307",
        "--runtime-env-agent-port=10308",
        "--metrics-export-port=10309",
        "--min-worker-port=10320",
        "--max-worker-port=10367",
    ]
    assert slot_flags(HEAD)[-4:] == [
        "--port=10246",
        "--dashboard-host=127.77.0.1",
        "--dashboard-port=10247",
        "--ray-client-server-port=10248",
    ]
    assert Slot(2) == slot(2)
