"""What a node says of itself, read with suspicion."""

from datetime import UTC, datetime, timedelta

import pytest

from cluster.fleet.rental import Rental, State
from cluster.fleet.terms import Terms
from cluster.head.said import read

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
RENTAL = Rental(
    **{"label": "va-1", "slot_id": "slot-1", "node_type": "gpu_4090", "offer": "1", "host": "2"},
    **{"state": State.BOOTING, "since": BEGUN, "reserved_at": BEGUN, "begun_at": BEGUN, "stretch_at": BEGUN},
    terms=Terms(gpu_usd_per_hour=1, storage_usd_per_hour=0),
)


def test_all_of_it() -> None:
    text = '{"state": "weights", "down": 5e9, "up": 7, "left_s": 12.5, "fault": "", "phases": {"weights": {"s": 1}}}'
    report = read(text, RENTAL, BEGUN + timedelta(seconds=60))
    assert (report.label, report.state, report.left_s, report.fault) == ("va-1", State.WEIGHTS, 12.5, "")
    assert (report.down_bytes, report.up_bytes, report.by_node) == (5e9, 7, True)


@pytest.mark.parametrize("seconds", [-5, 0, 10])
def test_no_line_is_faster(seconds: int) -> None:
    """Clocks differ, and less than nothing has gone by for nobody."""
    report = read('{"state": "idle", "down": 1e30, "up": 1e30}', RENTAL, BEGUN + timedelta(seconds=seconds))
    assert report.down_bytes == report.up_bytes == max(0, seconds) * 1.25e9


@pytest.mark.parametrize("state", ["renting", "loading", "booting", "busy", "ending", "ended", "", "IDLE"])
def test_a_state_that_is_not_a_node_s_to_say(state: str) -> None:
    with pytest.raises(ValueError, match="state"):
        read(f'{{"state": "{state}"}}', RENTAL, BEGUN)


@pytest.mark.parametrize("name", ["down", "up", "left_s"])
@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-1", "1e999", '"much"', "[]"])
def test_an_amount_that_is_none(name: str, amount: str) -> None:
    with pytest.raises(ValueError, match=name):
        read(f'{{"state": "idle", "{name}": {amount}}}', RENTAL, BEGUN)


def test_a_fault_is_one_legible_line() -> None:
    text = r'{"state": "idle", "fault": "\u0000\u001b[2Jno disk\n\u202eleft" }'
    assert read(text, RENTAL, BEGUN).fault == "[2Jno disk  left"
    assert len(read(f'{{"state": "idle", "fault": "{"x" * 1000}"}}', RENTAL, BEGUN).fault) == 300
    with pytest.raises(ValueError, match="fault"):
        read(f'{{"state": "idle", "fault": "{"x" * 2000}"}}', RENTAL, BEGUN)
