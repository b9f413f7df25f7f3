"""A Serve application that gets as many replicas as calls are waiting, each on a node of its own."""

import asyncio
import json
import os
import sys

import ray
from ray import serve


@serve.deployment(
    max_ongoing_requests=1,
    max_replicas_per_node=1,
    # The head has no CPU to give.
    ray_actor_options={"num_cpus": 0.5},
    autoscaling_config={
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 2,
        "downscale_to_zero_delay_s": 2,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
    },
)
class Slow:
    async def __call__(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return f"{ray.util.get_node_ip_address()} {os.getpid()}"


app = Slow.bind()  # type: ignore[attr-defined]


async def call(gcs: str, name: str, seconds: float) -> list[str]:
    """Call it from this machine, once for each replica that it may have; where each call ran."""
    ray.init(address=gcs, _node_ip_address=gcs.partition(":")[0], log_to_driver=False)
    handle = serve.get_app_handle(name)
    return list(await asyncio.gather(*(handle.remote(seconds) for _ in range(2))))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(call(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
