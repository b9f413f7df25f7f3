"""What LTX-2 holds while it computes, beside its weights, counted on no device from models of full width.

``python tests/benchmarks/activations.py`` prints the coefficients of ``deployments/ltx2/activations.py``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.video_processor import VideoProcessor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5Config, T5EncoderModel

from deployments.ltx2 import placement
from deployments.ltx2.activations import TOKEN, Activations
from deployments.ltx2.pipeline import to_uint8
from deployments.ltx2.versions import VERSIONS, Version
from tests.benchmarks.full_size import Depth, _default, components
from tests.benchmarks.live_bytes import faked, peak

#: Seconds of the longest clip, and latent frames of sound in a second.
LONGEST_S, SOUND_RATE = 10, 25
#: Channels of latents, of a token of sound, and of what connectors make for pictures and for sound.
_LATENT, _TOLD, _TOLD_FIRST = 128, (4096, 2048), (3840, 3840)


@dataclass(frozen=True, kw_only=True)
class Clip:
    width: int
    height: int
    frames: int
    seconds: float = LONGEST_S
    #: Batch items of the transformer's call.
    items: int = 1

    @property
    def latent(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return (self.frames + 7) // 8, self.height // 32, self.width // 32

    @property
    def tokens(self) -> int:
        return self.width * self.height * (self.frames + 7) // TOKEN


class Counted:
    """A generation whose weights are fake: one layer of the transformer, which is enough, and all of the rest."""

    def __init__(self, version: Version, width: int = 4096) -> None:
        self.version = version
        self.width = width
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[str, Any] = {}

    def _part(self, name: str) -> Any:
        if name not in self._made:
            if self.version is Version.LTX_VIDEO:
                made = ltx_video(self.width, layers=1)
            else:
                made = components(self.version, depth=Depth(transformer=1), only={name})
            self._made[name] = faked(made[name], self._mode)
        return self._made[name]

    def text(self) -> int:
        """Encoding one prompt."""
        encoder, tokens = self._part("text_encoder"), VERSIONS[self.version].text_tokens

        def ltx2() -> Any:
            seen = torch.empty(1, 1, tokens, tokens, dtype=torch.bool)
            states = encoder(
                input_ids=torch.empty(1, tokens, dtype=torch.int64),
                attention_mask={"full_attention": seen, "sliding_attention": seen},
                output_hidden_states=True,
                logits_to_keep=1,
            ).hidden_states
            # As the pipeline does it.
            return torch.stack(states, dim=-1).flatten(2, 3).repeat(1, 1, 1)

        def first() -> Any:
            return encoder(torch.empty(1, tokens, dtype=torch.int64))[0]

        return self._peak("text_encoder", first if self.version is Version.LTX_VIDEO else ltx2)

    def connectors(self) -> int:
        """Making of that what the transformer reads; its input included."""

        def call() -> Any:
            embeds = _floats(1, 1024, 3840 * 49)
            mask = torch.empty(1, 1024, dtype=torch.int64)
            return embeds, self._part("connectors")(embeds, mask, padding_side="left")

        return 0 if self.version is Version.LTX_VIDEO else self._peak("connectors", call)

    def call(self, clip: Clip) -> int:
        """One call of the transformer."""
        items, tokens = clip.items, clip.tokens
        frames, height, width = clip.latent

        def ltx2() -> Any:
            told, told_sound = _TOLD_FIRST if self.version is Version.LTX_2_0 else _TOLD
            sound = round(clip.seconds * SOUND_RATE)
            return self._part("transformer")(
                hidden_states=_floats(items, tokens, _LATENT),
                audio_hidden_states=_floats(items, sound, _LATENT),
                encoder_hidden_states=_floats(items, 1024, told),
                audio_encoder_hidden_states=_floats(items, 1024, told_sound),
                timestep=torch.empty(items, tokens),
                audio_timestep=torch.empty(items),
                sigma=torch.empty(items),
                num_frames=frames,
                height=height,
                width=width,
                fps=24.0,
                audio_num_frames=sound,
                video_coords=torch.empty(items, 3, tokens, 2),
                audio_coords=torch.empty(items, 1, sound, 2),
                use_cross_timestep=VERSIONS[self.version].cross_timestep,
                return_dict=False,
            )

        def first() -> Any:
            return self._part("transformer")(
                hidden_states=_floats(items, tokens, _LATENT),
                encoder_hidden_states=_floats(items, 128, 4096),
                timestep=torch.empty(items, tokens),
                encoder_attention_mask=torch.empty(items, 128),
                num_frames=frames,
                height=height,
                width=width,
                video_coords=torch.empty(items, 3, tokens),
                return_dict=False,
            )

        return self._peak("transformer", first if self.version is Version.LTX_VIDEO else ltx2)

    def decoding(self, clip: Clip, tile: int | None = None) -> int:
        """Decoding in tiles of this side or at once, up to frames of uint8."""
        vae = self._part("vae")
        temb = torch.empty(1, dtype=torch.bfloat16) if self.version is Version.LTX_VIDEO else None

        def call() -> Any:
            placement.tile(vae, clip.width, clip.height, tile)
            video = vae.decode(_floats(1, _LATENT, *clip.latent), temb, return_dict=False)[0]
            frames = VideoProcessor(vae_scale_factor=32).postprocess_video(video, output_type="pt")
            del video
            return to_uint8(frames[0])

        return self._peak("vae", call)

    def picture(self, clip: Clip) -> int:
        """Encoding the first frame, never in tiles."""
        vae = self._part("vae")

        def call() -> Any:
            placement.tile(vae, clip.width, clip.height, None)
            return vae.encode(_floats(1, 3, 1, clip.height, clip.width)).latent_dist.mode()

        return self._peak("vae", call)

    def upsampled(self, clip: Clip) -> int:
        """Doubling the latents of half the clip's size."""
        frames, height, width = clip.latent

        def call() -> Any:
            return self._part("latent_upsampler")(_floats(1, _LATENT, frames, height // 2, width // 2))

        return 0 if self.version is Version.LTX_VIDEO else self._peak("latent_upsampler", call)

    def sound(self, seconds: float = LONGEST_S) -> int:
        """From its latents to samples."""
        if self.version is Version.LTX_VIDEO:
            return 0
        vae, vocoder = self._part("audio_vae"), self._part("vocoder")
        with self._mode:
            latents = _floats(1, 8, round(seconds * SOUND_RATE), 16)
            return peak([vae, vocoder], lambda: vocoder(vae.decode(latents, return_dict=False)[0]))

    def _peak(self, name: str, call: Callable[[], Any]) -> int:
        part = self._part(name)
        with self._mode:
            return peak([part], call)


def fitted(counted: Counted) -> Activations:
    """The coefficients, each from one or two counts."""
    small, large = (Clip(width=width, height=width, frames=121) for width in (512, 1024))
    counts = counted.call(small), counted.call(large)
    token = (counts[1] - counts[0]) // (large.tokens - small.tokens)
    return Activations(
        text=counted.text(),
        connectors=counted.connectors(),
        call=counts[0] - token * small.tokens,
        token=token,
        upsampled=counted.upsampled(large) // large.tokens,
        picture=counted.picture(large) // 1024**2,
        decoded=-(-counted.decoding(large) // (1024**2 * 122)),
        sound=counted.sound(),
    )


def ltx_video(width: int, layers: int, device: str = "meta") -> dict[str, Any]:
    """LTX-Video at full size: 2048 wide and 28 deep is the 2B one, 4096 and 48 that of 13B. As :func:`components`."""
    with _default(torch.bfloat16), torch.device(device):
        return {
            "text_encoder": _t5().eval().requires_grad_(False),
            "transformer": LTXVideoTransformer3DModel(
                attention_head_dim=width // 32, cross_attention_dim=width, num_layers=layers
            )
            .eval()
            .requires_grad_(False),
            "vae": _ltx_video_vae().eval().requires_grad_(False),
        }


def _t5() -> Any:
    """The encoder of T5 v1.1 XXL."""
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def _ltx_video_vae() -> Any:
    """That of 0.9.5 and later, from diffusers' conversion script."""
    return AutoencoderKLLTXVideo(
        block_out_channels=(128, 256, 512, 1024, 2048),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        decoder_block_out_channels=(256, 512, 1024),
        layers_per_block=(4, 6, 6, 2, 2),
        decoder_layers_per_block=(5, 5, 5, 5),
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True,) * 3,
        upsample_factor=(2, 2, 2),
        timestep_conditioning=True,
        encoder_causal=True,
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def _floats(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def main() -> None:
    for version, width in [*((each, 4096) for each in Version), (Version.LTX_VIDEO, 2048)]:
        print(version, width, fitted(Counted(version, width)), flush=True)


if __name__ == "__main__":
    main()
