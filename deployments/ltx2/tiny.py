"""Tiny checkpoints with random weights, in the layout and geometry of the real ones.

They go through the same loader and pipelines as real weights, so a laptop and the tests exercise production code. The
output is noise. Everything is made locally: tokenizers from ASCII, models from their own initialisers.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2VideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    GemmaTokenizerFast,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from deployments.ltx2.checkpoint import RANDOM_MARKER, UPSAMPLER
from deployments.ltx2.versions import VERSIONS, Version

#: Prompt length in tokens, four turns of the 16 registers.
TOKENS = 64
_REGISTERS = 16

_TEXT_WIDTH, _TEXT_LAYERS = 32, 2
_HEADS, _VIDEO_HEAD, _AUDIO_HEAD = 2, 24, 12
_VIDEO_WIDTH, _AUDIO_WIDTH = _HEADS * _VIDEO_HEAD, _HEADS * _AUDIO_HEAD
_LATENT_CHANNELS, _AUDIO_LATENT_CHANNELS, _MEL_BINS = 8, 2, 32
#: Channels of one audio token. Also the audio VAE's base width, which sizes its latent statistics.
_AUDIO_FEATURES = _AUDIO_LATENT_CHANNELS * _MEL_BINS // 4

#: As shipped by most versions, so that recipes are tested against the setting they undo.
_SHIFTING = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def ensure(root: Path, version: Version = Version.LTX_2_0) -> Path:
    """Folder below ``root`` with the tiny checkpoint of ``version``, built on the first call (seconds, below 10 MB).

    The folder's name carries a digest of this module and the libraries, so another build never reads an old layout.
    Processes may call it at the same time: whoever finishes first wins, and nobody sees half a checkpoint.
    """
    stamp = hashlib.sha256(Path(__file__).read_bytes())
    stamp.update(f"{diffusers.__version__} {transformers.__version__}".encode())
    folder = root / f"{version}-{stamp.hexdigest()[:10]}"
    if (folder / RANDOM_MARKER).is_file():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=root))
    try:
        build(draft, version)
        draft.chmod(0o755)
        try:
            os.rename(draft, folder)
        except OSError:
            # Renaming onto a folder that is not empty fails: somebody else was faster.
            if not (folder / RANDOM_MARKER).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def build(folder: Path, version: Version) -> None:
    """Write a checkpoint into ``folder``. The weights are the same every time."""
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _ltx_video() if version is Version.LTX_VIDEO else _ltx2(version)
        pipeline.save_pretrained(folder)
        if VERSIONS[version].two_stages:
            # As in LTX-2.5-Diffusers, whose model_index.json does not name it.
            _upsampler().save_pretrained(folder / UPSAMPLER)
    facts = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    (folder / RANDOM_MARKER).write_text(json.dumps(facts) + "\n")


def _ltx2(version: Version) -> Any:
    gated = version is not Version.LTX_2_0
    tokenizer = _gemma_tokenizer()
    return LTX2ImageToVideoPipeline(
        scheduler=_scheduler(version),
        vae=_video_vae(gated),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=_AUDIO_FEATURES,
            output_channels=2,
            ch_mult=(1, 2, 2),
            num_res_blocks=1,
            in_channels=2,
            resolution=64,
            latent_channels=_AUDIO_LATENT_CHANNELS,
            mel_bins=_MEL_BINS,
        ),
        text_encoder=_gemma4(tokenizer) if version is Version.LTX_2_5 else _gemma3(tokenizer),
        tokenizer=tokenizer,
        connectors=_connectors(gated),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=_LATENT_CHANNELS,
            out_channels=_LATENT_CHANNELS,
            num_attention_heads=_HEADS,
            attention_head_dim=_VIDEO_HEAD,
            cross_attention_dim=_VIDEO_WIDTH,
            audio_in_channels=_AUDIO_FEATURES,
            audio_out_channels=_AUDIO_FEATURES,
            audio_num_attention_heads=_HEADS,
            audio_attention_head_dim=_AUDIO_HEAD,
            audio_cross_attention_dim=_AUDIO_WIDTH,
            num_layers=2,
            caption_channels=_TEXT_WIDTH,
            rope_type="split",
            rope_double_precision=True,
            gated_attn=gated,
            cross_attn_mod=gated,
            audio_gated_attn=gated,
            audio_cross_attn_mod=gated,
            perturbed_attn=gated,
            use_prompt_embeddings=not gated,
            ff_bias=version is not Version.LTX_2_5,
            use_keyframes_abs_pos_embedding=version is Version.LTX_2_5,
        ),
        vocoder=_vocoder(version),
    )


def _scheduler(version: Version) -> Any:
    return FlowMatchEulerDiscreteScheduler(**(_SHIFTING if VERSIONS[version].ships_shifting else {}))


def _upsampler() -> Any:
    # The least that its norms of 32 groups allow.
    return LTX2LatentUpsamplerModel(in_channels=_LATENT_CHANNELS, mid_channels=32, num_blocks_per_stage=1)


def _connectors(gated: bool) -> Any:
    return LTX2TextConnectors(
        caption_channels=_TEXT_WIDTH,
        text_proj_in_factor=_TEXT_LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=(_VIDEO_WIDTH if gated else _TEXT_WIDTH) // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=_REGISTERS,
        video_gated_attn=gated,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=(_AUDIO_WIDTH if gated else _TEXT_WIDTH) // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=_REGISTERS,
        audio_gated_attn=gated,
        connector_rope_base_seq_len=TOKENS,
        rope_type="split",
        per_modality_projections=gated,
        video_hidden_dim=_VIDEO_WIDTH,
        audio_hidden_dim=_AUDIO_WIDTH,
        proj_bias=gated,
    )


def _video_vae(gated: bool) -> Any:
    """Widths of the decoder shrink by the upsample factors from its deep end; the ratios stay those of real ones."""
    common: dict[str, Any] = {
        "latent_channels": _LATENT_CHANNELS,
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "timestep_conditioning": False,
        "encoder_causal": True,
        "decoder_causal": False,
        "encoder_spatial_padding_mode": "zeros",
        "patch_size": 4,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    if gated:
        return AutoencoderKLLTX2Video(
            block_out_channels=(8, 16, 16, 16),
            decoder_block_out_channels=(8, 16, 16, 32),
            decoder_layers_per_block=(1,) * 5,
            decoder_spatio_temporal_scaling=(True,) * 4,
            decoder_inject_noise=(False,) * 5,
            upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            upsample_residual=(False,) * 4,
            upsample_factor=(2, 2, 1, 2),
            decoder_spatial_padding_mode="zeros",
            **common,
        )
    return AutoencoderKLLTX2Video(
        block_out_channels=(8, 16, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
        decoder_spatial_padding_mode="reflect",
        **common,
    )


def _vocoder(version: Version) -> Any:
    """24 kHz for 2.0, 48 kHz after it: the upsample factors must multiply to 240 and 160 x 3 for true durations."""
    shared: dict[str, Any] = {
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3, 5]],
        "output_sampling_rate": VERSIONS[version].sound_rate,
    }
    if version is Version.LTX_2_0:
        return LTX2Vocoder(
            in_channels=2 * _MEL_BINS,
            hidden_channels=32,
            upsample_kernel_sizes=[16, 15, 8, 4, 4],
            upsample_factors=[6, 5, 2, 2, 2],
            **shared,
        )
    return LTX2VocoderWithBWE(
        in_channels=2 * _MEL_BINS,
        hidden_channels=64,
        upsample_kernel_sizes=[11, 4, 4, 4, 4, 4],
        upsample_factors=[5, 2, 2, 2, 2, 2],
        bwe_in_channels=2 * _MEL_BINS,
        bwe_hidden_channels=32,
        bwe_upsample_kernel_sizes=[12, 11, 4, 4, 4],
        bwe_upsample_factors=[6, 5, 2, 2, 2],
        bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1, 3, 5]],
        num_mel_channels=_MEL_BINS,
        **shared,
    )


def _gemma_tokenizer() -> Any:
    """Gemma's special tokens and byte fallback, and printable ASCII: any text tokenizes, no file is needed."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581"] + [chr(code) for code in range(33, 127)]
    vocabulary = {token: position for position, token in enumerate(tokens)}
    return GemmaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=TOKENS, padding_side="left")


def _gemma3(tokenizer: Any) -> Any:
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=_TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=TOKENS,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    # Never used, but the published checkpoints have one.
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    begin, end, image = tokenizer.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            boi_token_index=begin,
            eoi_token_index=end,
            image_token_index=image,
        )
    )


def _gemma4(tokenizer: Any) -> Any:
    text = Gemma4UnifiedTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=_TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=TOKENS,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text))


def _ltx_video() -> Any:
    tokenizer = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
        + [(chr(code), -3.0) for code in range(33, 127)]
        + [(f"<extra_id_{number}>", 0.0) for number in reversed(range(4))],
        extra_ids=4,
        model_max_length=TOKENS,
    )
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=_TEXT_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=_TEXT_LAYERS,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    # The decoder of 0.9.1 and later: it takes a timestep and adds noise of its own.
    vae = AutoencoderKLLTXVideo(
        latent_channels=_LATENT_CHANNELS,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, True, False),
        decoder_block_out_channels=(8, 16, 32),
        decoder_layers_per_block=(1,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(True, True, True, False),
        upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        patch_size=4,
        patch_size_t=1,
    )
    for name, weight in vae.named_parameters():
        # Begins as zero, which would hide the noise.
        if "per_channel_scale" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return LTXImageToVideoPipeline(
        scheduler=_scheduler(Version.LTX_VIDEO),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=LTXVideoTransformer3DModel(
            in_channels=_LATENT_CHANNELS,
            out_channels=_LATENT_CHANNELS,
            num_attention_heads=_HEADS,
            attention_head_dim=_VIDEO_HEAD,
            cross_attention_dim=_VIDEO_WIDTH,
            num_layers=2,
            caption_channels=_TEXT_WIDTH,
        ),
    )
