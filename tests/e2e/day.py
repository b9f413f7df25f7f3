"""A head that may rent, and a market where it can: what a test or a benchmark of the first day holds in its hands."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
import yaml

from cluster.head.wheel import wheel_of
from serve_app.cli import samples
from tests.e2e.cluster import Cluster, running, wait_until
from tests.e2e.container import ROOT
from tests.e2e.market import Market, market
from tests.fakes.netns import PUBLIC_PORT, Network
from tests.fakes.stock_image import stock_image
from tests.fakes.vast import KEY, a100, offer

SHORT = {"duration": 1, "width": 192, "height": 128}
#: Computes for about a minute on two cores.
LONG = {"duration": 10, "recipe": "quality", "width": 512, "height": 320}
#: Seconds without work after which a replica leaves, and after that its node.
IDLE_S, NODE_IDLE_S = 5, 10
_INPUTS = {"ltx2": ("image",), "wav2lip": ("video", "audio")}


@dataclass
class Day:
    cluster: Cluster
    market: Market
    inputs: dict[str, Path]

    def submit(self, model: str, **params: Any) -> str:
        return self.cluster.submit(model, {kind: self.inputs[kind] for kind in _INPUTS[model]}, **params)

    def wait(self, *job_ids: str, timeout_s: float = 240) -> list[dict[str, Any]]:
        """They have ended. Tells everything if they don't."""
        try:
            return [self.cluster.wait(job_id, timeout_s=timeout_s) for job_id in job_ids]
        except AssertionError:
            print(self.told())
            raise

    def phases(self) -> list[str]:
        return [row["phase"] for row in self.cluster.command("nodes") if row["phase"]]

    def empty(self) -> None:
        """All is given back, and the books of it are closed."""
        wait_until("no machine", lambda: self.market.vast.alive == [], 150)
        wait_until("closed books", lambda: self.phases() == [], 120)

    def query(self, text: str, *values: object) -> list[Any]:
        with psycopg.connect(self.cluster.environment["DATABASE_URL"]) as db:
            return db.execute(text, values).fetchall()

    def told(self) -> str:
        """Everything that was said."""
        logs = {"head": self.cluster.head.log(), **{str(key): log for key, log in self.market.logs().items()}}
        return "\n".join(f"--- {name}\n{log[-6000:]}" for name, log in logs.items())


@contextmanager
def first_day(postgres: str) -> Iterator[Day]:
    """The head is up, and nothing is rented."""
    with (
        # A short path, for Ray's sockets.
        tempfile.TemporaryDirectory(prefix="va-", dir="/var/tmp", ignore_cleanup_errors=True) as name,
        ExitStack() as opened,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        image = stock_image(folder / "image", ["video-api", "structlog"]).parents[1]
        wheel_of(metadata.distribution("structlog"), ["structlog"], folder / "wheelhouse")
        wanted = yaml.safe_load((ROOT / "configs/cluster.yaml").read_text())
        for each in wanted["available_node_types"].values():
            each["idle_timeout_s"] = NODE_IDLE_S
        (folder / "cluster.yaml").write_text(yaml.safe_dump(wanted))
        markets: list[Market] = []

        def more(net: Network) -> dict[str, str]:
            offers = [a100(1), a100(2), offer(3), offer(4)]
            markets.append(opened.enter_context(market(net, folder, image, offers)))
            return {
                "VAST_API_KEY": KEY,
                "VAST_URL": markets[0].url,
                "FLEET_HUB": f"{net.hub_address('gpu1')}:{PUBLIC_PORT}",
                "FLEET_WHEELHOUSE": str(folder / "wheelhouse"),
                "MAX_IDLE_SECONDS": str(IDLE_S),
            }

        flags = ("--cluster", str(folder / "cluster.yaml"))
        with running(folder, postgres, nodes=(), flags=flags, more=more) as cluster:
            (folder / "samples").mkdir()
            made = {kind: samples.make(kind, folder / "samples") for kind in ("image", "video", "audio")}
            yield Day(cluster, markets[0], {kind: path for kind, path in made.items() if path is not None})
