"""The network against the original's numbers."""

import copy
import math
import threading
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from deployments.wav2lip import checkpoint
from deployments.wav2lip.cores import Cores
from deployments.wav2lip.generator import TorchGenerator, best_dtype
from deployments.wav2lip.graphs import FixedSizes, Function, Replay
from deployments.wav2lip.network import Wav2Lip, entry_shapes, folded
from deployments.wav2lip.winograd import Winograd
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


@pytest.fixture(scope="module")
def exact(network: Wav2Lip) -> TorchGenerator:
    """On one core, in float32."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = TorchGenerator(network, CPU, torch.float32)
    torch.set_num_threads(before)
    return generator


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


def test_the_generator_masks_and_scales_as_the_network_wants_it(network: Wav2Lip, exact: TorchGenerator) -> None:
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
    result = exact(faces, mels)
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_batch_is_shared_by_the_cores_and_put_together_in_order(exact: TorchGenerator) -> None:
    numbers = np.random.default_rng(2)
    faces = numbers.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    mels = numbers.random((3, 80, 16), dtype=np.float32) * 8 - 4
    shared = copy.copy(exact)
    shared._cores = Cores(CPU)
    assert (exact._cores.count, shared._cores.count) == (1, 2)
    # The sizes of batches differ, and with them the order of summation.
    assert np.abs(shared(faces, mels).astype(int) - exact(faces, mels)).max() <= 1


@pytest.mark.usefixtures("two_threads")
def test_each_core_works_alone() -> None:
    cores = Cores(CPU)
    threads: set[tuple[str, int]] = set()
    both = threading.Barrier(2)

    def work(part: int) -> int:
        threads.add((threading.current_thread().name, torch.get_num_threads()))
        both.wait(10)
        return part * 2

    assert cores.map(work, [1, 2]) == [2, 4]
    assert [count for _, count in threads] == [1, 1]
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        cores.map(lambda part: 1 // part, [1, 0])


@pytest.mark.parametrize("size", [(8, 12), (6, 6), (3, 5), (1, 1)])
def test_fewer_multiplications_give_the_same_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 7, 3, 1, 1).requires_grad_(False)
    x = torch.randn(2, 5, *size).contiguous(memory_format=torch.channels_last)
    expected = conv(x)
    made = Winograd(conv)(x)
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_only_wide_residual_layers_are_worth_it(exact: TorchGenerator) -> None:
    wide = [layer for layer in exact._network.modules() if isinstance(layer, Winograd)]
    # Of the decoder 1 + 2 + 2 + 2 + 2, of the face's encoder 2 + 2 + 1, of the sound's 2 + 1.
    assert len(wide) == 17


class Recorder:
    """Records by calling again, as a graph would, and fails for the sizes it is told to."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.replayed: list[int] = []

    def __call__(self, function: Function, inputs: Sequence[torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        size = len(inputs[0])
        if size == self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        output = function(*inputs)

        def replay() -> None:
            self.replayed.append(size)
            output.copy_(function(*inputs))

        return replay, output


def test_batches_are_padded_to_recorded_sizes() -> None:
    recorder = Recorder()
    example = torch.zeros(1, 3), torch.zeros(1)
    fixed = FixedSizes(lambda a, b: a * 2 + b[:, None], example, (2, 4), recorder)
    results = [fixed(torch.full((count, 3), count), torch.arange(count)) for count in (4, 1, 2, 3, 5)]
    assert recorder.replayed == [4, 2, 2, 4]
    for count, result in zip((4, 1, 2, 3, 5), results, strict=True):
        assert torch.equal(result, 2 * count + torch.arange(count)[:, None].expand(count, 3))


def test_what_cannot_be_recorded_is_computed_eagerly() -> None:
    recorder = Recorder(failing=4)
    with capture_logs() as logs:
        fixed = FixedSizes(lambda a: a + 1, (torch.zeros(1, 3),), (2, 4), recorder)
    assert [(line["event"], line["batch"]) for line in logs] == [("no CUDA graph: computed eagerly", 4)]
    assert torch.equal(fixed(torch.zeros(3, 3)), torch.ones(3, 3))
    assert torch.equal(fixed(torch.zeros(2, 3)), torch.ones(2, 3))
    assert recorder.replayed == [2]


def test_the_generator_at_recorded_sizes(exact: TorchGenerator) -> None:
    """What runs on a card, but for the recording itself."""
    numbers = np.random.default_rng(3)
    faces = torch.from_numpy(numbers.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8))
    mels = torch.from_numpy(numbers.random((2, 80, 16), dtype=np.float32) * 8 - 4)
    with torch.inference_mode():
        made = FixedSizes(exact._speak, (faces[:1], mels[:1]), (3,), Recorder())(faces, mels).numpy()
    assert np.abs(made.astype(int) - exact(faces.numpy(), mels.numpy())).max() <= 1
