"""What a node is called, and what it says of itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.briefing import Briefing
from cluster.mesh.dialer import HubAddress
from cluster.mesh.identity import digest
from cluster.mesh.invitation import Invitation
from cluster.node.process import NodeOptions
from cluster.node.reporter import IDLE, JOINING, REFUSED_WEIGHTS, WEIGHTS, Reporter

SECRET = b"s" * 32
BRIEFING = Briefing(ray="2", python="3.11", address="127.77.0.1:1", token="t", by_hand="by_hand")


def options(**more: Any) -> NodeOptions:
    token = Invitation(b"f" * 32, SECRET).token()
    return NodeOptions(hub=HubAddress("x", 1), token=token, state=Path("x"), name="x", version="1", **more)


def test_a_rented_machine_is_called_what_its_renter_says() -> None:
    rented = options(instance="slot-7", node_type="gpu_4090")
    expected = {"RAY_CLOUD_INSTANCE_ID": "slot-7", "RAY_NODE_TYPE_NAME": "gpu_4090"}
    assert rented.known_as(BRIEFING) == expected


def test_one_that_joined_by_hand_is_called_by_what_the_registry_knows_of_it() -> None:
    known = options().known_as(BRIEFING)
    assert known == {
        "RAY_CLOUD_INSTANCE_ID": f"hand-{digest(SECRET).hex()[:12]}",
        "RAY_NODE_TYPE_NAME": "by_hand",
    }


def test_without_an_autoscaler_it_is_called_nothing() -> None:
    assert options().known_as(replace(BRIEFING, by_hand="")) == {}


def test_each_step_is_said_when_it_begins_and_the_fault_at_the_end() -> None:
    sent: list[str] = []
    reporter = Reporter(sent.append)
    for step in (WEIGHTS, JOINING, IDLE, JOINING):
        reporter.begin(step)
    reporter.fail(f"{REFUSED_WEIGHTS}LTX2's manifest: the store answered 403")
    said = [json.loads(text) for text in sent]
    assert [report["state"] for report in said] == ["weights", "joining", "idle", "joining", "joining"]
    assert [report["fault"] for report in said] == ["", "", "", "", "weights: LTX2's manifest: the store answered 403"]
    assert set(said[-1]["phases"]) == {"weights", "joining", "idle"}
