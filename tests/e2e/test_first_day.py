"""The README's first day, on a market of rented machines: from no GPU to videos and back to none, to the last cent.

One head, in this order; each test leaves the market empty.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from cluster.head.wheel import wheel_of
from serve_app.cli import samples
from tests.e2e.cluster import Cluster, running, wait_until
from tests.e2e.container import ROOT, missing
from tests.e2e.market import Market, market
from tests.fakes.netns import PUBLIC_PORT, Network
from tests.fakes.stock_image import stock_image
from tests.fakes.vast import KEY, a100, offer

SHORT = {"duration": 1, "width": 192, "height": 128}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    made = {kind: samples.make(kind, folder) for kind in ("image", "video", "audio")}
    return {kind: path for kind, path in made.items() if path is not None}


#: Seconds without work after which a replica leaves, and after that its node.
IDLE_S, NODE_IDLE_S = 5, 10


@pytest.fixture(scope="module")
def day(postgres: str) -> Iterator[tuple[Cluster, Market]]:
    """A head that may rent, and nothing else."""
    if reason := missing():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="va-", dir="/var/tmp", ignore_cleanup_errors=True) as name,
        ExitStack() as open_,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        image = stock_image(folder / "image", ["video-api", "structlog"]).parents[1]
        wheel_of(metadata.distribution("structlog"), ["structlog"], folder / "wheelhouse")
        cluster_yaml = folder / "cluster.yaml"
        wanted = yaml.safe_load((ROOT / "configs/cluster.yaml").read_text())
        for each in wanted["available_node_types"].values():
            each["idle_timeout_s"] = NODE_IDLE_S
        cluster_yaml.write_text(yaml.safe_dump(wanted))
        made: list[Market] = []

        def more(net: Network) -> dict[str, str]:
            made.append(open_.enter_context(market(net, folder, image, [a100(1), a100(2), offer(3), offer(4)])))
            return {
                "VAST_API_KEY": KEY,
                "VAST_URL": made[0].url,
                "FLEET_HUB": f"{net.hub_address('gpu1')}:{PUBLIC_PORT}",
                "FLEET_WHEELHOUSE": str(folder / "wheelhouse"),
                "MAX_IDLE_SECONDS": str(IDLE_S),
            }

        with running(folder, postgres, nodes=(), flags=("--cluster", str(cluster_yaml)), more=more) as cluster:
            yield cluster, made[0]


def works(day: tuple[Cluster, Market], most: int = 1) -> bool:
    """Fails the test at once if one has failed."""
    cluster, there = day
    if len(there.vast.contracts) > most:
        pytest.fail(f"{len(there.vast.contracts)} machines were rented")
    return any(row["phase"] in ("idle", "busy") for row in cluster.command("nodes"))


def told(day: tuple[Cluster, Market]) -> str:
    """Everything that was said, for a test that fails."""
    cluster, there = day
    logs = {"head": cluster.head.log(), **{str(number): log for number, log in there.logs().items()}}
    return "\n".join(f"--- {name}\n{log[-6000:]}" for name, log in logs.items())


def test_from_no_gpu_to_a_video_and_back_to_none(day: tuple[Cluster, Market], inputs: dict[str, Path]) -> None:
    cluster, there = day
    assert there.vast.alive == []
    job_id = cluster.submit("ltx2", {"image": inputs["image"]}, **SHORT)
    try:
        wait_until("a machine that works", lambda: works(day), 120)
        job = cluster.wait(job_id, timeout_s=120)
    except (AssertionError, pytest.fail.Exception):
        print(told(day))
        raise
    assert (job["status"], job["attempt"]) == ("completed", 1), job
    assert cluster.api.get(job["result_url"]).content[4:8] == b"ftyp"
    wait_until("no machine", lambda: there.vast.alive == [], 120)
