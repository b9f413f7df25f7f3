"""A head that may rent, and a market where it can: what a test or a benchmark of the first day holds in its hands."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import psycopg
import yaml

from cluster.head.wheel import wheel_of
from serve_app.cli import samples
from serve_app.cli.work import USES
from tests.e2e.cluster import COMMAND, Cluster, running, wait_until
from tests.e2e.container import ROOT
from tests.e2e.market import Market, market
from tests.fakes.netns import PUBLIC_PORT, Network
from tests.fakes.stock_image import stock_image
from tests.fakes.vast import KEY, Scenario, a100, offer

SHORT = {"duration": 1, "width": 192, "height": 128}
#: Computes for about a minute on two cores.
LONG = {"duration": 10, "recipe": "quality", "width": 512, "height": 320}
#: Seconds without work after which a replica leaves, and after that its node.
IDLE_S, NODE_IDLE_S = 5, 10
_STORE_PORT = 9000
_BUCKET = {"R2_ACCESS_KEY": "k", "R2_SECRET_KEY": "s", "R2_BUCKET": "videos", "R2_REGION": "us-east-1"}
#: Checkpoints in the real formats, with random weights.
_CHECKPOINTS = """
import sys, torch
from pathlib import Path
from deployments.ltx2 import tiny
from deployments.wav2lip.checkpoint import random_weights
folder = Path(sys.argv[1])
print(tiny.ensure(folder / "tiny"))
torch.save({"state_dict": random_weights()}, folder / "wav2lip.pth")
print(folder / "wav2lip.pth")
"""
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

    def mirror(self) -> None:
        """Step 2: weights of both models into the bucket."""
        folder = self.cluster.head.folder.with_name("checkpoints")
        folder.mkdir()
        made = subprocess.run([sys.executable, "-c", _CHECKPOINTS, folder], capture_output=True, text=True, cwd=ROOT)
        assert made.returncode == 0, made.stderr
        for name, source in zip(("ltx2", "wav2lip"), made.stdout.split()[-2:], strict=True):
            assert self.command("weights", "mirror", source, "--name", name)["files"]

    def doctor(self) -> dict[str, str]:
        """The state of each part."""
        return {each["part"]: each["state"] for each in self.command("doctor", *self.cluster.flags, status=(0, 2))}

    def command(self, *words: str, status: Sequence[int] = (0,)) -> Any:
        """A command in the head's shell; the JSON that it prints."""
        head = self.cluster.head
        variables = {name: value for name, value in self.cluster.environment.items() if name != "DATABASE_URL"}
        done = head.run([*COMMAND, "--json", *words], {**variables, "DATABASE_URL": self.cluster.database_url})
        assert done.returncode in status, done.stdout + done.stderr
        return json.loads(done.stdout)

    def phases(self) -> list[str]:
        # What ``video-api nodes`` shows; asked so often, a command would keep a core busy.
        return [state for (state,) in self.query("SELECT state FROM rentals WHERE state <> 'ended'")]

    def empty(self) -> None:
        """All is given back, and the books of it are closed. Tells everything if not."""
        try:
            wait_until("no machine", lambda: self.market.vast.alive == [], 150)
            wait_until("closed books", lambda: self.phases() == [], 120)
        except AssertionError:
            print(self.told())
            raise

    def query(self, text: str, *values: object) -> list[Any]:
        with psycopg.connect(self.cluster.environment["DATABASE_URL"]) as db:
            return db.execute(text, values).fetchall()

    def told(self) -> str:
        """Everything that was said."""
        logs = {"head": self.cluster.head.log(), **{str(key): log for key, log in self.market.logs().items()}}
        return "\n".join(f"--- {name}\n{log[-6000:]}" for name, log in logs.items())


@contextmanager
def first_day(postgres: str) -> Iterator[Day]:
    """The head is up, with a bucket that has no weights; so nothing is rented."""
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
        # One class of LTX-2, of which there are offers below: the other is then for nodes that join by hand.
        del wanted["available_node_types"]["gpu_40gb"]
        for each in wanted["available_node_types"].values():
            # One machine of each class is all that the network has.
            each |= {"idle_timeout_s": NODE_IDLE_S, "max_workers": min(each["max_workers"], 1)}
        (folder / "cluster.yaml").write_text(yaml.safe_dump(wanted))
        markets: list[Market] = []

        def more(net: Network) -> dict[str, str]:
            offers = [a100(1, dph_base=0.6), a100(2), offer(3)]
            markets.append(opened.enter_context(market(net, folder, image, offers)))
            # Every host has the image in no time, and charges for it what the books expect.
            pulled = Scenario(pull_bytes=USES["gpu_a100"].image_bytes)
            markets[0].vast.scenarios |= {offered["machine_id"]: pulled for offered in offers}
            endpoint = f"http://{net.gateway('head')}:{_STORE_PORT}"
            _start_store(net, folder, endpoint)
            return {
                **_BUCKET,
                "R2_ENDPOINT": endpoint,
                "ALLOW_RANDOM_WEIGHTS": "0",
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


def _start_store(net: Network, folder: Path, endpoint: str) -> None:
    """An S3 server that every machine reaches, with the bucket."""
    server = f"exec {sys.executable} -m moto.server -H 0.0.0.0 -p {_STORE_PORT} > {folder}/store.log 2>&1"
    net.start("internet", ["sh", "-c", server])

    def made() -> bool:
        with net.inside("head"):
            store = boto3.client(
                "s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
            )
            store.create_bucket(Bucket=_BUCKET["R2_BUCKET"])
        return True

    wait_until("the store", made, 60)
