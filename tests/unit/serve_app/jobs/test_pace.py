"""What is learnt from runs, and what it says of others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.jobs.pace import Pace, Run, Working

SHORT, LONG = Run(1.0, 10.0, 12.0), Run(10.0, 70.0, 80.0)


def test_a_shape_goes_by_its_own_runs() -> None:
    pace = Pace([SHORT, LONG] * 3)
    assert (pace.gpu_s(1.0), pace.gpu_s(10.0)) == (10.0, 70.0)
    assert (pace.whole_s(1.0), pace.whole_s(10.0)) == (12.0, 80.0)


def test_an_unknown_shape_goes_by_all_runs_and_its_effort() -> None:
    assert Pace([SHORT]).gpu_s(5.0) == 50.0
    # 10 and 7 seconds for the same effort.
    assert Pace([SHORT, LONG]).gpu_s(3.0) == pytest.approx(3 * 8.5)


def test_one_odd_run_changes_little() -> None:
    assert Pace([SHORT, SHORT, Run(1.0, 900.0, 900.0)]).gpu_s(1.0) == 10.0


def test_of_nothing_nothing_is_learnt() -> None:
    assert Pace([]).gpu_s(1.0) is None
    assert Pace([]).whole_s(1.0) is None
    assert Pace([]).left_s(Working(1.0, 0.0, 1, 30.0)) is None


def test_without_others_its_own_pace_is_known_once_it_says_something() -> None:
    assert Pace([]).left_s(Working(1.0, 0.01, 1, 30.0)) is None
    assert Pace([]).left_s(Working(1.0, 0.25, 1, 30.0)) == 90.0


def test_at_first_it_goes_by_others_and_later_by_its_own_pace() -> None:
    pace = Pace([Run(1.0, 100.0, 100.0)])
    assert pace.left_s(Working(1.0, 0.0, 1, 5.0)) == 100.0
    # As fast as the others.
    assert pace.left_s(Working(1.0, 0.5, 1, 50.0)) == pytest.approx(50.0)
    # Half as fast: at nine tenths that is seen, and 20 more of its own seconds are left.
    assert pace.left_s(Working(1.0, 0.9, 1, 180.0)) == pytest.approx(19.0)


def test_how_far_a_second_attempt_is_nobody_knows() -> None:
    assert Pace([SHORT]).left_s(Working(1.0, 0.9, 2, 500.0)) == 12.0
    assert Pace([]).left_s(Working(1.0, 0.9, 2, 500.0)) is None


@given(
    st.lists(st.builds(Run, st.floats(0.01, 1e3), st.floats(0, 1e5), st.floats(0, 1e5)), max_size=5),
    st.builds(Working, st.floats(0.01, 1e3), st.floats(0, 1), st.integers(1, 3), st.floats(0, 1e6)),
)
def test_time_that_is_left_is_never_negative(runs: list[Run], job: Working) -> None:
    left = Pace(runs).left_s(job)
    assert left is None or left >= 0
