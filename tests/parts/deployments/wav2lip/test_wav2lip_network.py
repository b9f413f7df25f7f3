"""The network against the original's numbers."""

import math
import zlib

import numpy as np
import pytest
import torch

from deployments.wav2lip import checkpoint
from deployments.wav2lip.generator import TorchGenerator, best_dtype
from deployments.wav2lip.network import Wav2Lip, entry_shapes, folded
from tests.parts.deployments.wav2lip.clips import GOLDEN

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def network(golden: dict[str, np.ndarray]) -> Wav2Lip:
    """With the weights that the golden output was computed with."""
    weights = {}
    for name, shape in entry_shapes().items():
        numbers = np.random.default_rng([int(golden["salt"]), zlib.crc32(name.encode())])
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name.endswith("running_var"):
            value = 0.5 + numbers.random(shape)
        elif name.endswith("running_mean"):
            value = 0.1 * numbers.standard_normal(shape)
        elif len(shape) == 4:
            value = numbers.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            value = 0.5 + numbers.random(shape)
        else:
            value = 0.1 * numbers.standard_normal(shape)
        weights[name] = torch.from_numpy(np.asarray(value, np.float32))
    return checkpoint.build(weights, "golden")


def test_the_layout_is_the_published_one(network: Wav2Lip) -> None:
    assert len(network.state_dict()) == 352
    assert sum(weight.numel() for weight in network.parameters()) == 36_298_035
    assert "face_encoder_blocks.6.1.conv_block.1.running_var" in network.state_dict()
    assert network.state_dict()["face_decoder_blocks.5.0.conv_block.0.weight"].shape == (320, 128, 3, 3)


@pytest.mark.parametrize("ready", [False, True], ids=["plain", "folded"])
def test_golden_output(network: Wav2Lip, golden: dict[str, np.ndarray], ready: bool) -> None:
    numbers = np.random.default_rng([int(golden["salt"]), 1])
    face = numbers.random((2, 6, 96, 96), dtype=np.float32)
    face[:, :3, 48:] = 0
    mel = numbers.random((2, 1, 80, 16), dtype=np.float32) * 8 - 4
    with torch.inference_mode():
        out = (folded(network) if ready else network)(torch.from_numpy(mel), torch.from_numpy(face)).numpy()
    assert np.abs(out - golden["network_out"]).max() <= 1e-5


def test_the_generator_masks_and_scales_as_the_network_wants_it(network: Wav2Lip) -> None:
    numbers = np.random.default_rng(1)
    faces = numbers.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    mels = numbers.random((3, 80, 16), dtype=np.float32) * 8 - 4
    picture = faces.transpose(0, 3, 1, 2).astype(np.float32) / 255
    masked = picture.copy()
    masked[:, :, 48:] = 0
    with torch.inference_mode():
        stacked = torch.from_numpy(np.concatenate((masked, picture), axis=1))
        expected = network(torch.from_numpy(mels[:, None]), stacked).numpy()
    levels = (expected * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    result = TorchGenerator(network, CPU, torch.float32)(faces, mels)
    assert result.dtype == np.uint8
    assert result.shape == levels.shape
    # Another order of summation moves a value across a whole level now and then.
    difference = np.abs(result.astype(int) - levels)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.skipif(best_dtype(CPU) != torch.bfloat16, reason="this processor has no bfloat16 arithmetic")
def test_bfloat16_stays_within_a_level(network: Wav2Lip) -> None:
    numbers = np.random.default_rng(0)
    faces = numbers.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    mels = numbers.random((8, 80, 16), dtype=np.float32) * 8 - 4
    exact = TorchGenerator(network, CPU, torch.float32)(faces, mels).astype(int)
    fast = TorchGenerator(network, CPU)(faces, mels)
    difference = np.abs(exact - fast)
    assert (difference <= 1).mean() >= 0.999
    assert 10 * math.log10(255**2 / (difference**2).mean()) >= 50


def test_random_weights_are_reproducible_and_leave_torch_alone() -> None:
    before = torch.get_rng_state()
    one, two = checkpoint.random_weights(3), checkpoint.random_weights(3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["output_block.1.weight"], checkpoint.random_weights(4)["output_block.1.weight"])
