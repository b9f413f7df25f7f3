"""What the sandbox is made of on this machine, for its operator."""

import structlog

from deployments.sandbox.layers import LAYERS, Layers
from deployments.sandbox.process import layers

log = structlog.get_logger()


def log_layers() -> Layers:
    """Log which layers protect here, in one line, and which could not be had and why. Once in a process's life."""
    found = layers()
    lost = {name: f"{LAYERS[name]}: {reason}" for name, reason in found.missing.items()}
    if lost:
        log.warning("sandbox_incomplete", layers=sorted(found.granted), missing=lost)
    else:
        log.info("sandbox_complete", layers=sorted(found.granted))
    return found
