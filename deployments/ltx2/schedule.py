"""Noise schedules: one scheduler per pass of a recipe, never the one a checkpoint ships."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from deployments.ltx2.recipes import Pass


class FixedSigmas(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is untyped
    """Runs exactly ``fixed`` (then 0), whatever schedule the pipeline asks for.

    The LTX-Video pipeline computes its own sigmas and takes none, so this is the only way to give it the distilled
    ones. LTX-2 takes them as an argument; using the same class there keeps one rule.
    """

    fixed: tuple[float, ...]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Take the fixed sigmas up. The signature is diffusers'; all but ``device`` is ignored."""
        super().set_timesteps(sigmas=list(self.fixed), device=device)


def scheduler_of(part: Pass) -> Any:
    """A fresh scheduler with every setting taken from ``part``."""
    if part.sigmas is None:
        return FlowMatchEulerDiscreteScheduler(**part.scheduler)
    scheduler = FixedSigmas(**part.scheduler)
    scheduler.fixed = part.sigmas
    return scheduler
