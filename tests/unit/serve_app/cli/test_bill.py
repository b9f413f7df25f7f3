"""What machines have cost and what came of it."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.bill import Done, Spent, bill

MONDAY, TUESDAY = date(2026, 1, 5), date(2026, 1, 6)


def spent(
    node: str = "a", usd: float = 1.0, day: date = MONDAY, start_usd: float = 0.0, rented_s: float = 100
) -> Spent:
    return Spent(node=node, node_type="gpu", day=day, usd=usd, start_usd=start_usd, rented_s=rented_s)


def done(
    node: str = "a", model: str = "ltx2", busy_s: float = 10, day: date = MONDAY, jobs: str = "1", videos: int = 1
) -> Done:
    return Done(node=node, day=day, model=model, jobs=frozenset(jobs), videos=videos, busy_s=busy_s)


def test_models_share_a_node_by_their_seconds() -> None:
    found = bill(
        [spent(usd=4, start_usd=1)], [done(busy_s=30), done(model="wav2lip", busy_s=10, jobs="23", videos=2)], "model"
    )
    ltx2, wav2lip = found.lines["ltx2"], found.lines["wav2lip"]
    assert (ltx2.usd, ltx2.usd_per_video, ltx2.start_share) == (3, 3, 0.25)
    assert (wav2lip.usd, wav2lip.usd_per_video, len(wav2lip.jobs)) == (1, 0.5, 2)
    assert ltx2.utilisation == pytest.approx(30 / 75)
    assert (found.total.usd, found.total.videos, found.total.utilisation) == (4, 3, pytest.approx(0.4))
    assert found.unattributed_usd == 0


def test_a_node_on_which_nothing_ran_is_nobody_s() -> None:
    found = bill([spent(), spent("b", usd=0.5)], [done()], "model")
    assert found.lines.keys() == {"ltx2"}
    assert (found.unattributed_usd, found.total.usd) == (0.5, 1.5)


def test_days_and_nodes_have_what_was_spent_on_them() -> None:
    costs = [spent(usd=1, day=MONDAY), spent(usd=2, day=TUESDAY), spent("b", usd=4, day=TUESDAY)]
    runs = [done(day=MONDAY), done(day=TUESDAY, jobs="2")]
    days = bill(costs, runs, "day").lines
    assert {day: (line.usd, line.videos) for day, line in days.items()} == {"2026-01-05": (1, 1), "2026-01-06": (6, 1)}
    nodes = bill(costs, runs, "node").lines
    assert {node: (line.usd, line.usd_per_video) for node, line in nodes.items()} == {"a": (3, 1.5), "b": (4, None)}


def test_a_job_that_was_tried_twice_is_one_job() -> None:
    found = bill([spent(), spent("b")], [done(videos=0), done("b")], "model")
    assert (len(found.lines["ltx2"].jobs), found.total.videos, len(found.total.jobs)) == (1, 1, 1)


def test_what_ran_on_machines_that_nobody_rented_is_no_part_of_it() -> None:
    found = bill([spent()], [done(), done("guest", jobs="9")], "model")
    assert (found.total.videos, found.total.usd) == (1, 1)


def test_nothing_is_divided_by_nothing() -> None:
    line = bill([], [], "model").total
    assert (line.usd_per_video, line.utilisation, line.start_share) == (None, None, None)


NODES = st.sampled_from(["a", "b", "c"])
SPENT = st.builds(
    Spent,
    node=NODES,
    node_type=st.just("gpu"),
    day=st.sampled_from([MONDAY, TUESDAY]),
    usd=st.floats(0, 100),
    start_usd=st.floats(0, 100),
    rented_s=st.floats(0, 1e5),
)
DONE = st.builds(
    Done,
    node=NODES,
    day=st.sampled_from([MONDAY, TUESDAY]),
    model=st.sampled_from(["ltx2", "wav2lip"]),
    jobs=st.frozensets(st.sampled_from("1234"), min_size=1),
    videos=st.integers(0, 3),
    busy_s=st.floats(0.001, 1e4),
)


@given(st.lists(SPENT), st.lists(DONE), st.sampled_from(["model", "node", "day"]))
def test_lines_add_up_to_the_total(costs: list[Spent], runs: list[Done], by: str) -> None:
    found = bill(costs, runs, by)
    lost = found.unattributed_usd if by == "model" else 0
    assert sum(line.usd for line in found.lines.values()) + lost == pytest.approx(sum(each.usd for each in costs))
    assert sum(line.videos for line in found.lines.values()) == found.total.videos
    assert sum(line.busy_s for line in found.lines.values()) == pytest.approx(found.total.busy_s)
