"""The benchmark of a backlog, on one that is short."""

import pytest

from tests.benchmarks import backlog


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "REPORT_S", 0.0)


@pytest.mark.parametrize("holding", [False, True])
def test_a_share_is_of_the_time_from_the_first_run_to_the_last(holding: bool) -> None:
    share = backlog.measure(4, 0.02, holding=holding)
    assert (share.jobs, share.holding) == (4, holding)
    # Three gaps at the most between four runs, of which none is shorter than it was told to be.
    assert 0.08 / (0.08 + 3 * share.gap_most_s) <= share.busy < 1


def test_a_share_below_the_bar_is_said_to_be() -> None:
    good = backlog.Share(jobs=20, run_s=1, holding=False, busy=0.98, gap_p50_s=0.001, gap_most_s=0.002)
    bad = backlog.Share(jobs=20, run_s=1, holding=True, busy=0.96, gap_p50_s=0.001, gap_most_s=0.002)
    assert "At least 0.97: holds." in "\n".join(backlog.lines([good]))
    assert "At least 0.97: DOES NOT HOLD." in "\n".join(backlog.lines([good, bad]))
