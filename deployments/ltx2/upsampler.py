"""The model that doubles the latents of a half-size clip in width and height, which is what joins two stages."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

from deployments.ltx2.checkpoint import check_upsampler
from deployments.weights import CheckpointError


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in ``folder``, or in its ``latent_upsampler/``. Raises :class:`CheckpointError`."""
    part = check_upsampler(folder)
    try:
        model = LTX2LatentUpsamplerModel.from_pretrained(str(part), dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{part} cannot be loaded as LTX2LatentUpsamplerModel: {error}") from error
    return model.to(device)
