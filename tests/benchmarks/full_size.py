"""LTX-2.x at its full size with random weights: what speed and memory depend on, without a download.

``python tests/benchmarks/full_size.py`` counts the parameters, on no device. Shapes are those of the published
checkpoints, from diffusers' conversion scripts; where a value is not named here, the class's default is the published
one. Weights come from the classes' own initialisers, on the device itself: no copy on the host, buffers as they have
to be, and no zeros, at which a GPU draws less power and clocks higher. They say nothing about quality.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)

from deployments.ltx2 import tiny
from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.versions import Version

#: LTX-2.0, 2.3 and 2.5; LTX-Video is smaller and has no bar.
VERSIONS = (Version.LTX_2_0, Version.LTX_2_3, Version.LTX_2_5)


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How many layers there are, and other things of which a thin model has less; all widths stay. As published."""

    transformer: int = 48
    text: int = 48
    #: The text encoder's eyes, which nothing here uses and which are loaded all the same. 2.5 has none.
    vision: int = 27
    #: Of each connector; None: 2 of LTX-2.0, 8 of later ones.
    connectors: int | None = None
    #: What a prompt is padded to, a multiple of 128.
    tokens: int = 1024
    #: Of Gemma 3.
    vocabulary: int = 262_208


FULL = Depth()
#: Fits a laptop (10 GiB in float32), and a minute there makes a small clip.
THIN = Depth(transformer=1, text=1, vision=1, connectors=1, tokens=128, vocabulary=512)

_GEMMA: dict[str, Any] = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
#: As LTX-2.0 and 2.3 ship it; recipes bring schedulers of their own.
_SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def components(
    version: Version,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.bfloat16,
    depth: Depth = FULL,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Modules by their names in the pipeline, and ``latent_upsampler``; ``only`` some of them.

    Ready to run (eval, no gradients) but on ``meta``, where they have shapes alone.
    """
    made = {}
    for name, make in _makers(version, depth).items():
        if only is None or name in only:
            with _default(dtype), torch.device(device):
                made[name] = make().eval().requires_grad_(False)
    return made


def pipeline(modules: Mapping[str, Any], tokens: int) -> Any:
    """diffusers' image-to-video pipeline over :func:`components`; the upsampler is not part of it.

    The tokenizer is that of the tiny checkpoint: one token a letter, so 150 letters are a usual prompt.
    """
    tokenizer = tiny._gemma_tokenizer()
    tokenizer.model_max_length = tokens
    parts = {name: module for name, module in modules.items() if name != "latent_upsampler"}
    pipe = LTX2ImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_SCHEDULER), tokenizer=tokenizer, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def facts_of(version: Version, depth: Depth = FULL) -> Checkpoint:
    """What a folder with these weights would be read as."""
    return Checkpoint(version=version, layers=depth.transformer, text_tokens=depth.tokens, random_weights=True)


def parameters(version: Version, depth: Depth = FULL, only: Collection[str] | None = None) -> dict[str, int]:
    """How many each component has."""
    return {
        name: sum(each.numel() for each in module.parameters())
        for name, module in components(version, depth=depth, only=only).items()
    }


def _makers(version: Version, depth: Depth) -> dict[str, Callable[[], Any]]:
    first = version is Version.LTX_2_0
    return {
        "text_encoder": lambda: _gemma4(depth) if version is Version.LTX_2_5 else _gemma3(depth),
        "connectors": lambda: LTX2TextConnectors(**_connectors(first, depth)),
        "transformer": lambda: LTX2VideoTransformer3DModel(**_transformer(version, depth)),
        "vae": lambda: AutoencoderKLLTX2Video(**_video_vae(first)),
        "audio_vae": lambda: AutoencoderKLLTX2Audio(),
        "vocoder": lambda: LTX2Vocoder() if first else LTX2VocoderWithBWE(),
        "latent_upsampler": lambda: LTX2LatentUpsamplerModel(use_rational_resampler=first),
    }


def _transformer(version: Version, depth: Depth) -> dict[str, Any]:
    gated = version is not Version.LTX_2_0
    return {
        "num_layers": depth.transformer,
        "rope_type": "split",
        "gated_attn": gated,
        "cross_attn_mod": gated,
        "audio_gated_attn": gated,
        "audio_cross_attn_mod": gated,
        "perturbed_attn": gated,
        "use_prompt_embeddings": not gated,
        "ff_bias": version is not Version.LTX_2_5,
        "use_keyframes_abs_pos_embedding": version is Version.LTX_2_5,
    }


def _connectors(first: bool, depth: Depth) -> dict[str, Any]:
    layers = depth.connectors or (2 if first else 8)
    shared = {
        # Every layer's output and the embeddings.
        "text_proj_in_factor": depth.text + 1,
        "video_connector_num_layers": layers,
        "audio_connector_num_layers": layers,
        "rope_type": "split",
    }
    if first:
        return shared
    return {
        **shared,
        "video_connector_num_attention_heads": 32,
        "video_gated_attn": True,
        "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "proj_bias": True,
    }


def _video_vae(first: bool) -> dict[str, Any]:
    shared = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    if first:
        return shared
    return {
        **shared,
        "block_out_channels": (256, 512, 1024, 1024),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "decoder_spatial_padding_mode": "zeros",
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
    }


def _gemma3(depth: Depth) -> Any:
    """Gemma 3 12B."""
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                **_GEMMA,
                "num_hidden_layers": depth.text,
                "query_pre_attn_scalar": 256,
                "vocab_size": depth.vocabulary,
            },
            vision_config={**_SIGLIP, "num_hidden_layers": depth.vision},
            mm_tokens_per_image=256,
            boi_token_index=255999,
            eoi_token_index=256000,
            image_token_index=262144,
        )
    )


def _gemma4(depth: Depth) -> Any:
    """The text half of Gemma 4 12B: every sixth layer looks at everything, with one head of keys that are values."""
    text = {
        **_GEMMA,
        "num_hidden_layers": depth.text,
        "global_head_dim": 512,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    }
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """A table of parameters (billions) and of bytes in bfloat16 (GiB)."""
    print("| component | " + " | ".join(f"{version}, 10^9 | GiB" for version in VERSIONS) + " |")
    print("|---|" + "---:|---:|" * len(VERSIONS))
    counts = [parameters(version) for version in VERSIONS]
    for name in counts[0]:
        print(f"| {name} | " + " | ".join(f"{c[name] / 1e9:.2f} | {c[name] * 2 / 2**30:.2f}" for c in counts) + " |")
    print(
        "| all | " + " | ".join(f"{sum(c.values()) / 1e9:.2f} | {sum(c.values()) * 2 / 2**30:.1f}" for c in counts), "|"
    )


if __name__ == "__main__":
    main()
