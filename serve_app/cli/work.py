"""What nodes of each type are rented for: the work of one model. Estimates, until there are measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.vast.cost import Work


@dataclass(frozen=True, kw_only=True)
class Use:
    """Of a node type."""

    image_bytes: float
    #: What the image lacks.
    package_bytes: float = 0.5e9
    weight_bytes: float
    #: Seconds to boot, unpack, load weights into the GPU and join Ray.
    setup_s: float
    #: Of one job, on the GPU.
    job_s: float
    #: Without work before it is given back: ``max_idle`` of configs/production.yaml, and ``idle_timeout_s`` of
    #: configs/cluster.yaml after it.
    idle_s: float
    media_in_bytes: float
    media_out_bytes: float

    def work(self, jobs: int) -> "Work":
        from cluster.vast.cost import Work

        return Work(
            image_bytes=self.image_bytes,
            package_bytes=self.package_bytes,
            weight_bytes=self.weight_bytes,
            media_in_bytes=jobs * self.media_in_bytes,
            media_out_bytes=jobs * self.media_out_bytes,
            setup_s=self.setup_s,
            busy_s=jobs * self.job_s * _RETRIES,
            idle_s=self.idle_s,
        )


#: Attempts for a job that succeeds.
_RETRIES = 1.03
#: By node type: LTX-2 with its text encoder on two classes of memory, and Wav2Lip.
USES: Mapping[str, Use] = MappingProxyType(
    {
        "gpu_a100": Use(
            image_bytes=4e9,
            weight_bytes=70e9,
            setup_s=120,
            job_s=15,
            idle_s=420,
            media_in_bytes=2e6,
            media_out_bytes=10e6,
        ),
        "gpu_40gb": Use(
            image_bytes=4e9,
            weight_bytes=70e9,
            setup_s=150,
            job_s=170,
            idle_s=420,
            media_in_bytes=2e6,
            media_out_bytes=10e6,
        ),
        "gpu_4090": Use(
            image_bytes=4e9,
            weight_bytes=0.5e9,
            setup_s=60,
            job_s=25.2,
            idle_s=150,
            media_in_bytes=20e6,
            media_out_bytes=10e6,
        ),
    }
)
