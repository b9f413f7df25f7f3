"""For processes that hold secrets: closed to other processes of the same user, where decoders are such."""

from deployments.sandbox import kernel
from deployments.sandbox.layers import Layers

#: Only a service that is root can have this layer. The others keep a decoder of the same user from other processes.
_OWN_USER = "uid"


def close_to_others(layers: Layers) -> None:
    """Let nobody but root read this process's memory and first environment, or attach to it, and dump no core: unless
    the sandbox keeps decoders from other processes of their user anyway.

    It has a price. Profilers and debuggers of the same user are refused, and Ray's agent, where it is not root, takes
    one process whose descriptors it can't count for a fault and reports nothing of the whole node (2.60): the dashboard
    then has no CPU and memory, Prometheus no ``ray_node_*``. It does not outlast an exec.
    """
    if layers.missing.keys() - {_OWN_USER}:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
