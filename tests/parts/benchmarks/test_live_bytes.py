"""The counter of live bytes is what the memory plan is measured with, so it has to agree with the allocator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from deployments.ltx2 import tiny
from deployments.ltx2.versions import Version
from tests.benchmarks.live_bytes import LiveBytes, bytes_of, faked, peak

#: Frames, height and width of latents.
LATENT = (4, 8, 8)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny.ensure(tmp_path_factory.mktemp("tiny"), Version.LTX_2_3)
    return LTX2VideoTransformer3DModel.from_pretrained(str(folder / "transformer")).eval()


def forward_of(transformer: Any) -> Callable[[], Any]:
    config = transformer.config
    tokens, sound, text = LATENT[0] * LATENT[1] * LATENT[2], 26, 64
    width = config.num_attention_heads * config.attention_head_dim
    sound_width = config.audio_num_attention_heads * config.audio_attention_head_dim
    return lambda: transformer(
        hidden_states=torch.zeros(1, tokens, config.in_channels),
        audio_hidden_states=torch.zeros(1, sound, config.audio_in_channels),
        encoder_hidden_states=torch.zeros(1, text, width),
        audio_encoder_hidden_states=torch.zeros(1, text, sound_width),
        timestep=torch.zeros(1, tokens),
        audio_timestep=torch.zeros(1),
        sigma=torch.zeros(1),
        num_frames=LATENT[0],
        height=LATENT[1],
        width=LATENT[2],
        fps=24.0,
        audio_num_frames=sound,
        video_coords=torch.zeros(1, 3, tokens, 2),
        audio_coords=torch.zeros(1, 1, sound, 2),
        return_dict=False,
    )


def allocated(call: Callable[[], Any]) -> int:
    """Most bytes at once, by the allocator's own word."""
    with (
        torch.no_grad(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        call()
    assert profile.profiler is not None
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for each in sorted(events, key=lambda event: event.start_ns()):
        now += each.nbytes()
        most = max(most, now)
    return most


def test_the_count_is_what_the_allocator_gave_and_what_fake_tensors_would_have_taken(transformer: Any) -> None:
    forward = forward_of(transformer)
    with torch.no_grad():
        forward()
    counted = peak([transformer], forward)
    assert counted == allocated(forward)
    mode = FakeTensorMode()
    fake = faked(LTX2VideoTransformer3DModel.from_config(transformer.config).to("meta"), mode)
    with mode:
        assert peak([fake], forward_of(fake)) == counted
    assert bytes_of(fake) == bytes_of(transformer)


def test_views_results_in_place_and_weights_are_not_counted_and_what_is_gone_is_not_either() -> None:
    held = torch.zeros(1000)
    with LiveBytes([held]) as counter:
        one = torch.zeros(256)
        one.view(16, 16).add_(1)
        held.view(10, 100).mul_(2)
        assert (counter.now, counter.peak) == (1024, 1024)
        other = torch.cat([one, one])
        assert (counter.now, counter.peak) == (3072, 3072)
        del one
        assert (counter.now, counter.peak) == (2048, 3072)
        part = other[:1]
        del other
        assert counter.now == 2048
        del part
        assert (counter.now, counter.peak) == (0, 3072)
