"""Kinds of machines that are wanted. Their names are those of ``available_node_types`` in configs/cluster.yaml."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from cluster.vast.rental import MAX_BID, MIN_BID, MIN_DISK_GB


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """What a machine has to have; more is welcome, but for the GPUs, where another is another class."""

    name: str
    #: As Vast writes them, with a blank.
    gpu_names: tuple[str, ...]
    gpus: int = 1
    #: MB of one GPU, from and to. Names do not tell an A100 of 40 GB from one of 80 GB.
    gpu_ram_mb: tuple[float, float]
    #: MB of host memory that the rental itself gets.
    cpu_ram_mb: float
    cpu_cores: float
    disk_gb: float
    #: Mb/s.
    inet_down_mbps: float
    #: Greatest version of CUDA that the host's driver takes.
    cuda: float = 12.8
    #: 0 to 1.
    reliability: float = 0.95
    #: Seconds for which the host has to offer it: a node is not to be taken from us in the middle of its work.
    duration_s: float = 86400.0
    #: False: only hosts that Vast has verified, in datacenters that it has vetted. True takes anybody's machine, and
    #: whoever runs one can run code in every Ray process of the cluster, on the head too, and sees all users' media.
    trust_any_host: bool = False
    #: Dollars per hour that may be bid for its GPUs. None: on demand only, where nobody can take it from us by bidding
    #: more. A bid's machine is stopped without notice, in the middle of its work, as soon as somebody does.
    spot_usd_per_hour: float | None = None
    #: Two machines may be started for one node where traffic is cheap; who is ready first stays. The other is paid too.
    race: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.reliability <= 1:
            raise ValueError("reliability: more than 0, at most 1")
        if not self.inet_down_mbps > 0:
            raise ValueError("inet_down_mbps: more than 0")
        if self.spot_usd_per_hour is not None and not MIN_BID <= self.spot_usd_per_hour <= MAX_BID:
            raise ValueError(f"spot_usd_per_hour: {MIN_BID:g} to {MAX_BID:g}")
        if not self.disk_gb >= MIN_DISK_GB:
            raise ValueError(f"disk_gb: at least {MIN_DISK_GB:g}")

    def with_options(self, options: Mapping[str, Any]) -> "NodeType":
        """As ``node_config`` of configs/cluster.yaml wants it. Raises ValueError, which names what is wrong."""
        if unknown := sorted(map(str, options.keys() - _OPTIONS.keys())):
            raise ValueError(f"{', '.join(unknown)}: unknown; there are {', '.join(_OPTIONS)}")
        found: dict[str, Any] = {}
        for name, value in options.items():
            field, kind = _OPTIONS[name]
            if kind is bool:
                if not isinstance(value, bool):
                    raise ValueError(f"{name}: true or false")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name}: a number")
            found[field] = math.ceil(value * 2**30 / 1e9) if name == "disk_gib" else value
        return replace(self, **found)


#: What ``node_config`` may hold: the field that it sets, and of what kind it is.
_OPTIONS: Mapping[str, tuple[str, type]] = MappingProxyType(
    {
        "disk_gib": ("disk_gb", float),
        "inet_down_mbps": ("inet_down_mbps", float),
        "reliability": ("reliability", float),
        "spot_usd_per_hour": ("spot_usd_per_hour", float),
        "race": ("race", bool),
        "trust_any_host": ("trust_any_host", bool),
    }
)


#: LTX-2 with all of it in the GPU. A card of 80 GB reports between 81,000 and 81,920. The disk takes the 140 GiB of
#: configs/cluster.yaml: 70 GB of weights, their parts while they load, and the image. Of host
#: memory the plan takes up to 37 GiB (docs/memory.md). Weights of that size want a fast line.
GPU_A100 = NodeType(
    name="gpu_a100",
    gpu_names=("A100 SXM4", "A100 PCIE", "A100X"),
    gpu_ram_mb=(76_000, 84_000),
    cpu_ram_mb=48_000,
    cpu_cores=6,
    disk_gb=151,
    inet_down_mbps=1000,
)

#: LTX-2 for what the plan of its memory gives a card of 40 GB (docs/memory.md). Such a card reports between 40,536 and
#: 40,960. Those of 48 GB take it as well, and report 46,068 with error correction, and 49,140 without. What leaves the
#: GPU comes back from host memory, of which that takes 42 GiB.
GPU_40GB = NodeType(
    name="gpu_40gb",
    gpu_names=("A100 SXM4", "A100 PCIE", "L40S", "RTX 6000Ada"),
    gpu_ram_mb=(40_200, 50_000),
    cpu_ram_mb=56_000,
    cpu_cores=6,
    disk_gb=151,
    inet_down_mbps=1000,
)

#: Wav2Lip. A card of 24 GB reports 24,564; there are rebuilt ones of 48 GB. Vast allows 256 threads and processes for
#: each core, and Ray takes hundreds: hence 5, where the work itself wants 4.
GPU_4090 = NodeType(
    name="gpu_4090",
    gpu_names=("RTX 4090",),
    gpu_ram_mb=(24_000, 26_000),
    cpu_ram_mb=16_000,
    cpu_cores=5,
    disk_gb=33,
    inet_down_mbps=500,
)

NODE_TYPES: Mapping[str, NodeType] = MappingProxyType({node.name: node for node in (GPU_A100, GPU_40GB, GPU_4090)})
