"""What a machine says of itself on its way to being a node."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.bootstrap.progress import Progress
from cluster.bootstrap.traffic import Traffic, traffic


class Machine:
    """Its clock and its network, and what it says."""

    def __init__(self) -> None:
        self.now, self.traffic = 100.0, Traffic(1000, 10)
        self.progress = Progress(lambda: self.now, lambda: self.traffic)

    def pass_on(self, seconds: float, down: int) -> None:
        self.now += seconds
        self.traffic = Traffic(self.traffic.down + down, self.traffic.up + 1)

    @property
    def said(self) -> dict[str, Any]:
        return json.loads(self.progress.text())


def test_each_phase_has_its_seconds_and_its_bytes() -> None:
    machine = Machine()
    machine.progress.begin("installing", "fetching")
    machine.pass_on(2, 500)
    machine.progress.begin("installing")
    machine.pass_on(3, 50)
    assert machine.said == {
        "state": "installing",
        "down": 1550,
        "up": 12,
        "left_s": None,
        "fault": "",
        "phases": {"fetching": {"s": 2.0, "bytes": 500}, "installing": {"s": 3.0, "bytes": 50}},
    }
    # A phase that comes again goes on.
    machine.progress.begin("installing", "fetching")
    machine.pass_on(1, 1)
    assert machine.said["phases"]["fetching"] == {"s": 3.0, "bytes": 501}


def test_seconds_left_go_by_the_rate_of_this_time() -> None:
    machine = Machine()
    machine.progress.begin("weights")
    # What was kept says nothing about the rate.
    machine.progress.measure(600, 1000)
    assert machine.said["left_s"] is None
    machine.pass_on(10, 100)
    machine.progress.measure(700, 1000)
    assert machine.said["left_s"] == 30
    machine.progress.measure(1000, 1000)
    assert machine.said["left_s"] == 0
    machine.progress.begin("joining")
    assert machine.said["left_s"] is None


@given(st.text(max_size=3000))
def test_whatever_the_fault_it_fits_a_frame(fault: str) -> None:
    machine = Machine()
    machine.progress.begin("weights")
    machine.progress.fail(fault)
    assert len(machine.progress.text().encode()) <= 1024
    assert " ".join(fault.split()).startswith(machine.said["fault"])


def test_traffic_is_what_all_interfaces_but_the_loopback_have_seen(tmp_path: Path) -> None:
    counters = tmp_path / "dev"
    counters.write_text(
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
        "    lo: 999 5 0 0 0 0 0 0 999 5 0 0 0 0 0 0\n"
        "  eth0: 100 5 0 0 0 0 0 0 10 5 0 0 0 0 0 0\n"
        "  eth1:1234567890123 5 0 0 0 0 0 0 1 5 0 0 0 0 0 0\n"
    )
    assert traffic(counters) == Traffic(1234567890223, 11)
