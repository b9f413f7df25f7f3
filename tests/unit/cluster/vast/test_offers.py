"""Which offers are kept, in which order, and what they cost."""

import itertools
import re
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.vast.cost import Work, cost
from cluster.vast.node_type import GPU_4090, GPU_A100, NODE_TYPES, NodeType
from cluster.vast.offer import Offer
from cluster.vast.offers import rank
from cluster.vast.requirements import Drop
from tests.unit.cluster.vast.market import WORK, a100, rtx4090

ROOT = Path(__file__).parents[4]


UNFIT = [
    ({"rentable": False}, Drop.NOT_FREE, ""),
    ({"gpu_name": "H100 SXM"}, Drop.OTHER_GPU, "H100 SXM not one of A100 SXM4, A100 PCIE, A100X"),
    ({"num_gpus": 2}, Drop.OTHER_GPU, "2 instead of 1 GPUs"),
    ({"gpu_ram": 40960}, Drop.GPU_MEMORY, "40,960 below 76,000 MB"),
    ({"gpu_ram": 96000}, Drop.GPU_MEMORY, "96,000 above 84,000 MB"),
    ({"verification": "unverified"}, Drop.UNVERIFIED_HOST, ""),
    ({"verification": "deverified"}, Drop.UNVERIFIED_HOST, ""),
    ({"verification": None}, Drop.UNVERIFIED_HOST, ""),
    ({"hosting_type": 0}, Drop.NO_DATACENTER, ""),
    ({"hosting_type": None}, Drop.NO_DATACENTER, ""),
    ({"reliability": 0.9}, Drop.UNRELIABLE, "0.9 below 0.95"),
    ({"cuda_max_good": 12.4}, Drop.OLD_DRIVER, "12.4 below 12.8"),
    ({"cpu_cores_effective": 4}, Drop.FEW_CORES, "4 below 6"),
    ({"cpu_ram": 32000, "gpu_frac": 1}, Drop.LITTLE_MEMORY, "32,000 below 48,000 MB"),
    # The machine has enough, of which an eighth is ours.
    ({"cpu_ram": 256000, "gpu_frac": 0.125}, Drop.LITTLE_MEMORY, "32,000 below 48,000 MB"),
    ({"disk_space": 100}, Drop.SMALL_DISK, "100 below 151 GB"),
    ({"inet_down": 300}, Drop.SLOW_LINE, "300 below 1,000 Mb/s"),
    ({"duration": 3600}, Drop.ENDS_SOON, "3,600 below 86,400 s"),
]


@pytest.mark.parametrize(("changes", "reason", "detail"), UNFIT)
def test_what_does_not_fit_is_dropped_and_says_why(changes: dict, reason: Drop, detail: str) -> None:
    found = rank([a100(1), a100(2, **changes)], GPU_A100, WORK)
    assert [each.offer.id for each in found.kept] == [1]
    assert [(each.offer.id, each.reason, each.detail) for each in found.dropped] == [(2, reason, detail)]


def test_every_reason_is_explained_and_seen() -> None:
    assert [reason for reason in Drop if not reason.meaning.endswith(".")] == []
    seen = {reason for _, reason, _ in UNFIT}
    assert seen | {Drop.BLOCKED, Drop.DEAR_BID} == set(Drop)


@pytest.mark.parametrize(
    ("least", "bid"), [(0.15, 0.18), (0.25, 0.27), (0.27, 0.27), (0.0001, 0.001), (0.28, None), (None, None)]
)
def test_a_bid_is_a_fifth_above_the_least_and_never_above_the_cap(least: float | None, bid: float | None) -> None:
    node = replace(GPU_4090, spot_usd_per_hour=0.27)
    offer = rtx4090(1, is_bid=True, min_bid=least)
    found = rank([offer], node, WORK)
    assert [each.bid_usd for each in found.kept] == ([] if bid is None else [pytest.approx(bid)])
    assert [each.reason for each in found.dropped] == ([Drop.DEAR_BID] if bid is None else [])
    assert rank([offer], GPU_4090, WORK).dropped[0].reason is Drop.DEAR_BID
    assert rank([rtx4090(1, min_bid=least)], node, WORK).kept[0].bid_usd is None


def test_a_bid_wins_by_its_whole_cost_with_the_risk_of_being_outdone() -> None:
    node = replace(GPU_4090, spot_usd_per_hour=1.0)
    demand = rtx4090(1, dph_base=0.30)
    for least, first in ((0.15, 2), (0.2499, 1)):
        kept = rank([demand, rtx4090(2, is_bid=True, min_bid=least)], node, WORK).kept
        assert kept[0].offer.id == first
    # At the same price it is worth less, the less the longer the work.
    same, bid = (cost(demand, node, WORK, bid_usd) for bid_usd in (None, 0.30))
    longer = cost(demand, node, replace(WORK, busy_s=2 * WORK.busy_s), 0.30)
    assert same.total_usd - same.risk_usd == pytest.approx(bid.total_usd - bid.risk_usd)
    assert same.risk_usd < bid.risk_usd < longer.risk_usd


def test_a_machine_that_failed_is_not_tried_again() -> None:
    found = rank([a100(1), a100(2)], GPU_A100, WORK, blocked={1001})
    assert [each.offer.id for each in found.kept] == [2]
    assert [each.reason for each in found.dropped] == [Drop.BLOCKED]


@pytest.mark.parametrize("changes", [{"verification": "unverified"}, {"hosting_type": 0}])
def test_other_hosts_are_taken_by_whoever_says_so(changes: dict) -> None:
    assert rank([a100(**changes)], replace(GPU_A100, trust_any_host=True), WORK).kept


@pytest.mark.parametrize("memory", [81251, 81920, 80000])
def test_an_a100_of_80_gb_is_one_however_it_is_counted(memory: float) -> None:
    assert rank([a100(gpu_ram=memory)], GPU_A100, WORK).kept


@pytest.mark.parametrize(("memory", "kept"), [(24564, True), (24217, True), (49140, False), (16376, False)])
def test_a_4090_has_24_gb(memory: float, kept: bool) -> None:
    assert bool(rank([rtx4090(gpu_ram=memory)], GPU_4090, WORK).kept) is kept


@pytest.mark.parametrize(
    "changes",
    [{"dph_base": -1}, {"dph_base": float("nan")}, {"inet_down_cost": None}, {"reliability": 2}, {"machine_id": "m"}],
)
def test_an_offer_without_what_is_asked_of_it_is_none(changes: dict) -> None:
    with pytest.raises(ValidationError):
        rtx4090(**changes)


def test_node_types_are_those_of_the_cluster() -> None:
    types = yaml.safe_load((ROOT / "configs/cluster.yaml").read_text())["available_node_types"]
    assert types.keys() - {"head"} == NODE_TYPES.keys()
    for name, node in NODE_TYPES.items():
        assert node.name == name
        assert node.cpu_cores >= types[name]["resources"]["CPU"]
        assert node.gpus == types[name]["resources"]["GPU"]
        assert node.with_options(types[name]["node_config"]) == node


def test_what_the_cluster_s_file_offers_in_comments_is_there() -> None:
    lines = (ROOT / "configs/cluster.yaml").read_text().splitlines()
    (begin,) = [number for number, line in enumerate(lines) if "node_config may hold" in line]
    named: dict[str, object] = {}
    for line in itertools.takewhile(lambda line: line.lstrip().startswith("#"), lines[begin + 1 :]):
        if found := re.match(r" *#   (\w+: \S+)", line):
            named |= yaml.safe_load(found[1])
    node = GPU_4090.with_options(named)
    assert (node.disk_gb, node.spot_usd_per_hour, node.race, node.trust_any_host) == (33, 0.25, True, True)
    assert (node.inet_down_mbps, node.reliability) == (1000, 0.99)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"disk_gb": 30, "spot": 1, "race": True}, "disk_gb, spot: unknown"),
        ({"race": "yes"}, "race: true or false"),
        ({"trust_any_host": 1}, "trust_any_host: true or false"),
        ({"disk_gib": True}, "disk_gib: a number"),
        ({"spot_usd_per_hour": "0.3"}, "spot_usd_per_hour: a number"),
        ({"spot_usd_per_hour": 0}, "spot_usd_per_hour: 0.001 to 128"),
        ({"reliability": float("nan")}, "reliability: a number"),
        ({"disk_gib": 4}, "disk_gb: at least 8"),
    ],
)
def test_options_that_can_t_be_are_named(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        GPU_4090.with_options(options)


@pytest.mark.parametrize("name", ["reliability", "inet_down_mbps"])
def test_a_node_type_asks_for_what_costs_are_divided_by(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(GPU_4090, **{name: 0})


# ---------------------------------------------------------------- cost

#: What a burst of so many jobs cost by a plan that was made by hand: dollars per video.
LTX2 = {1: 0.62, 5: 0.148, 20: 0.060, 100: 0.036, 1000: 0.031}
WAV2LIP = {1: 0.099, 5: 0.022, 20: 0.0075, 100: 0.0036, 1000: 0.0027}


@pytest.mark.parametrize(("jobs", "usd"), LTX2.items())
def test_ltx_costs_what_the_facts_have_computed(jobs: int, usd: float) -> None:
    """420 s of a start that is billed, 90 GB in."""
    offer = a100(dph_base=0.667, inet_down=2000, inet_down_cost=0.005, storage_cost=0.2, reliability=1)
    assert per_video(offer, replace(GPU_A100, disk_gb=120), jobs, 90e9, 60, 151) == pytest.approx(usd, rel=0.02)


@pytest.mark.parametrize(("jobs", "usd"), WAV2LIP.items())
def test_wav2lip_costs_what_the_facts_have_computed(jobs: int, usd: float) -> None:
    """60 s of a start that is billed, 12 GB in."""
    offer = rtx4090(dph_base=0.357, inet_down=3200, inet_down_cost=0.005, storage_cost=0.2, reliability=1)
    assert per_video(offer, replace(GPU_4090, disk_gb=30), jobs, 12e9, 30, 25.2) == pytest.approx(usd, rel=0.04)


def per_video(offer: Offer, node: NodeType, jobs: int, size: float, setup_s: float, job_s: float) -> float:
    work = Work(
        image_bytes=size / 2, package_bytes=size / 4, weight_bytes=size / 4, media_in_bytes=0, media_out_bytes=0,
        setup_s=setup_s, busy_s=jobs * job_s * 1.03, idle_s=300,
    )  # fmt: skip
    return cost(offer, node, work).total_usd / jobs


def test_each_component_is_its_own() -> None:
    offer = a100(
        dph_base=3.6, inet_down=800, inet_down_cost=0.01, inet_up_cost=0.02, storage_cost=0.73, reliability=0.8
    )
    work = Work(
        image_bytes=4e9, package_bytes=1e9, weight_bytes=5e9, media_in_bytes=2e9, media_out_bytes=3e9,
        setup_s=100, busy_s=1000, idle_s=300,
    )  # fmt: skip
    found = cost(offer, replace(GPU_A100, disk_gb=3600), work)
    assert found.cold_start_s == pytest.approx(100 + 100)
    assert (found.cold_usd, found.busy_usd, found.idle_usd) == pytest.approx((0.2, 1.0, 0.3))
    assert found.storage_usd == pytest.approx(0.001 * 1500)
    assert found.bandwidth_usd == pytest.approx(0.1 + 0.02 + 0.06)
    # A quarter of a break: a start, half of the work, what was fetched, half of the media.
    assert found.risk_usd == pytest.approx(0.25 * (0.002 * (200 + 500) + 0.1 + 0.04))
    assert found.total_usd == pytest.approx(0.2 + 1.0 + 0.3 + 1.5 + 0.18 + found.risk_usd)


def test_traffic_can_outweigh_the_gpu() -> None:
    """90 GB at 0.02 dollars are 1.80."""
    cheap_gpu, cheap_line = a100(1, dph_base=0.6, inet_down_cost=0.02), a100(2, dph_base=0.9, inet_down_cost=0.001)
    assert [each.offer.id for each in rank([cheap_gpu, cheap_line], GPU_A100, WORK).kept] == [2, 1]


# ---------------------------------------------------------------- order

amounts = st.floats(0, 10)
offers = st.builds(
    a100,
    number=st.integers(1, 10**6),
    dph_base=amounts,
    inet_down=st.floats(500, 10_000),
    inet_down_cost=st.floats(0, 0.1),
    inet_up_cost=st.floats(0, 0.1),
    storage_cost=st.floats(0, 1),
    reliability=st.floats(0.9, 1),
    gpu_ram=st.sampled_from([40960, 81920]),
    verification=st.sampled_from(["verified", "unverified"]),
)
markets = st.lists(offers, max_size=12, unique_by=attrgetter("id"))
works = st.builds(
    Work,
    **dict.fromkeys(("image_bytes", "package_bytes", "weight_bytes", "media_in_bytes", "media_out_bytes"),
                    st.floats(0, 1e11)),
    **dict.fromkeys(("setup_s", "busy_s", "idle_s"), st.floats(0, 1e5)),
)  # fmt: skip


@given(markets, works)
def test_every_offer_is_either_kept_or_dropped(market: list[Offer], work: Work) -> None:
    found = rank(market, GPU_A100, work)
    assert sorted([each.offer.id for each in found.kept] + [each.offer.id for each in found.dropped]) == sorted(
        offer.id for offer in market
    )


@given(markets, works, st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_how_offers_came(market: list[Offer], work: Work, random: Random) -> None:
    mixed = list(market)
    random.shuffle(mixed)
    assert rank(mixed, GPU_A100, work).kept == rank(market, GPU_A100, work).kept


PRICES = ("dph_base", "inet_down_cost", "inet_up_cost", "storage_cost")
MERITS = ("inet_down_mbps", "reliability")


@given(markets, works, offers, st.lists(st.floats(0, 1), min_size=4, max_size=4), st.lists(st.floats(0, 1), min_size=2))
def test_what_is_better_in_everything_is_never_ranked_below(
    market: list[Offer], work: Work, offer: Offer, cheaper: list[float], better: list[float]
) -> None:
    fits = {"gpu_ram_mb": 81920, "verification": "verified", "reliability": 0.95 + 0.05 * (offer.reliability - 0.9)}
    worse = offer.model_copy(update={"id": 2 * 10**6, **fits, "inet_down_mbps": offer.inet_down_mbps + 500})
    gains = {name: getattr(worse, name) * factor for name, factor in zip(PRICES, cheaper, strict=True)}
    gains["inet_down_mbps"] = worse.inet_down_mbps * (1 + better[0])
    gains["reliability"] = worse.reliability + (1 - worse.reliability) * better[1]
    best = worse.model_copy(update={"id": 10**6 + 1, **gains})
    kept = [each.offer.id for each in rank([worse, *market, best], GPU_A100, work).kept]
    assert kept.index(best.id) < kept.index(worse.id)
