"""The README's first day, on a market of rented machines: from no GPU to videos and back to none, to the last cent.

One head, in this order; each test leaves the market empty.
"""

import pwd
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.cluster import RAY_USER, wait_until
from tests.e2e.container import missing
from tests.e2e.day import LONG, SHORT, Day, first_day
from tests.fakes.vast import KEY


@pytest.fixture(scope="module")
def day(postgres: str) -> Iterator[Day]:
    if reason := missing():
        pytest.skip(reason)
    with first_day(postgres) as made:
        yield made


def test_without_weights_nothing_is_rented_and_the_job_says_why(day: Day) -> None:
    job_id = day.submit("ltx2", **SHORT)
    job = day.cluster.wait(job_id, lambda job: job["wait_code"] == "weights_unavailable", timeout_s=60)
    assert "video-api weights mirror" in job["wait_reason"]
    found = day.doctor()
    assert found["vast"] == "ok", found
    assert found["weights"] != "ok", found
    assert day.market.vast.contracts == {}
    day.cluster.api.post(f"/api/v1/jobs/{job_id}/cancel")


def test_from_no_gpu_to_a_video_and_back_to_none(day: Day) -> None:
    day.mirror()
    assert day.doctor()["weights"] == "ok"
    # The cheapest machine is one whose containers can't be started.
    day.market.vast.scenarios[1001] = replace(day.market.vast.scenarios[1001], end="oci_error")
    begun = time.monotonic()
    job_id = day.submit("ltx2", **SHORT)
    seen: dict[str, float] = {}

    def ended() -> bool:
        assert len(day.market.vast.contracts) <= 2, "a second machine has failed"
        for phase in day.phases():
            seen.setdefault(phase, time.monotonic() - begun)
        return day.cluster.job(job_id)["status"] in ("completed", "failed")

    try:
        wait_until("the video", ended, 240)
    except AssertionError:
        print(day.told())
        raise
    (job,) = day.wait(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 1), job
    assert job["cost_estimate_usd"]["high"] > 0
    assert day.cluster.api.get(job["result_url"]).content[4:8] == b"ftyp"
    print(f"video after {time.monotonic() - begun:.1f} s; first seen at:", {k: round(v, 1) for k, v in seen.items()})
    assert "loading" in seen
    day.empty()
    assert [why for (why,) in day.query("SELECT why FROM rentals ORDER BY reserved_at")] == ["broken", "dismissed"]
    assert day.query("SELECT host, why FROM blocked_hosts") == [("1001", "broken")]
    states = {state for (state,) in day.query("SELECT DISTINCT state FROM node_costs")}
    assert {"loading", "installing", "weights", "joining", "idle", "busy"} <= states


def test_twenty_jobs_of_both_models_and_a_bill_to_the_cent(day: Day) -> None:
    jobs = [day.submit("ltx2", **SHORT) for _ in range(17)] + [day.submit("wav2lip") for _ in range(3)]
    ended = day.wait(*jobs, timeout_s=400)
    assert {job["status"] for job in ended} == {"completed"}, ended
    assert len([row for row in day.command("nodes") if row["phase"]]) == len(day.phases())
    day.empty()
    assert_the_bill_is_the_ledger(day)
    cost = sum(day.cluster.job(job_id)["cost_usd"] for job_id in jobs)
    assert cost > 0


def test_the_next_head_adopts_what_the_last_one_has_rented(day: Day) -> None:
    """Two heads at once, of which one rents; then the first dies while two machines work."""
    before = len(day.market.vast.contracts)
    jobs: list[str] = []

    def both_work() -> bool:
        # Whichever is there first has work until the other is.
        for model, most, params in (("ltx2", 1, LONG), ("wav2lip", 4, {})):
            ((left,),) = day.query(
                "SELECT count(*) FROM jobs WHERE model = %s AND status NOT IN ('completed', 'failed', 'cancelled')",
                model,
            )
            jobs.extend(day.submit(model, **params) for _ in range(left, most))
        return day.phases().count("busy") == 2

    wait_until("two machines that work", both_work, 240)
    # Ray asks the second machine for another, to start when the GPU is free: it will be, and nobody will want it.
    wait_until("a replica too many", lambda: day.cluster.replicas("wav2lip", state="STARTING"), 60)
    old = day.cluster.redeploy()
    try:
        wait_until("the next head", lambda: day.cluster.api.get("/health").json() == {"api": "standby"}, 60)
        assert '"fleet.starts"' not in day.cluster.head.log()
    finally:
        # As when its machine loses its power.
        old.kill()
    day.cluster.network.cut_by_reset()
    day.cluster.network.start_forwarder(day.cluster.head.machine)
    try:
        wait_until("the next head", day.cluster.is_up, 120)
    except (AssertionError, pytest.fail.Exception):
        print(day.told())
        raise
    ended = day.wait(*jobs, timeout_s=300)
    assert {(job["status"], job["attempt"]) for job in ended} == {("completed", 1)}, ended
    day.empty()
    rented = list(day.market.vast.contracts.values())[before:]
    # Nothing is rented beside a machine that the last head has left; whatever went, went for being idle.
    for gpu in {contract.offer["gpu_name"] for contract in rented}:
        alike = [contract for contract in rented if contract.offer["gpu_name"] == gpu]
        assert all(one.ended is not None and one.ended <= other.begun for one, other in pairwise(alike)), alike
    whys = day.query("SELECT DISTINCT why FROM rentals WHERE label = ANY(%s)", [contract.label for contract in rented])
    assert whys == [("dismissed",)]
    assert_the_bill_is_the_ledger(day)


def test_what_runs_on_ray_learns_nothing_of_the_key(day: Day) -> None:
    """None of its processes on the head has it, and no log says it."""
    assert KEY not in day.told()
    user = pwd.getpwnam(RAY_USER).pw_uid
    looked = 0
    for pid in day.cluster.head.processes():
        # One may have ended meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}").stat().st_uid == user:
                assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
                looked += 1
    assert looked


def assert_the_bill_is_the_ledger(day: Day) -> None:
    """Per machine, within a second of its price; and what jobs cost, with what no job carries, is all of it."""
    ledger: defaultdict[str, float] = defaultdict(float)
    total = "gpu_usd + storage_usd + bandwidth_usd"
    rows = day.query(f"SELECT instance, sum({total}) FROM node_costs JOIN rentals USING (label) GROUP BY instance")
    for instance, usd in rows:
        ledger[instance] += usd
    bill = {str(number): sum(meters.values()) for number, meters in day.market.vast.bill().items()}
    assert ledger.keys() == bill.keys()
    for number, contract in day.market.vast.contracts.items():
        second = (contract.dph_base + 0.1) / 3600
        assert ledger[str(number)] == pytest.approx(bill[str(number)], abs=second), day.market.vast.bill()[number]
    ((jobs,),) = day.query("SELECT coalesce(sum(cost_usd), 0) FROM job_costs")
    costs = day.command("costs")
    assert jobs + costs["total"]["unattributed_usd"] == pytest.approx(sum(ledger.values()))
