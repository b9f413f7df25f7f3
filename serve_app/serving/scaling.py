"""How many replicas Serve keeps: its own policy, mended at zero.

By Serve's, a deployment of which no replica runs keeps the number it once asked for. So a replica that no node takes is
asked for, with a GPU node behind it, long after its job was cancelled; and a deployment whose constructor
failed three times never tries again, since only at zero Serve forgets the failures.
"""

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

#: As ``autoscaling_config`` names it.
POLICY = f"{__name__}:by_load"


def by_load(context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
    """Replicas wanted. Serve applies its delays to the answer."""
    if context.current_num_replicas == 0 and context.total_num_requests == 0:
        return 0, {}
    wanted: tuple[int | float, dict[str, Any]] = replica_queue_length_autoscaling_policy(context)
    return wanted
