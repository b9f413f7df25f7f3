"""Reading a Wav2Lip checkpoint that somebody downloaded: any of the forms in circulation, and never any code in it.

``weights_only=True`` always: a pickle may run code on loading, and nothing in a Wav2Lip checkpoint needs that.

``python -m deployments.wav2lip.checkpoint wav2lip_gan.pth wav2lip_gan.safetensors`` converts once: a third of the size
(the optimiser's state stays behind) and quicker to load.
"""

import argparse
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deployments.wav2lip.network import Wav2Lip, entry_shapes
from deployments.wav2lip.spec import SMALLEST
from deployments.weights import CheckpointError, check_file


def load(path: Path) -> Wav2Lip:
    """The network with the weights of ``path`` (.pth, .pt or .safetensors), float32, on the CPU, in evaluation mode."""
    return build(read(path), source=str(path))


def read(path: Path) -> dict[str, Tensor]:
    """The weights in ``path`` by their plain names. Raises :class:`CheckpointError`."""
    check_file(path, SMALLEST)
    if path.suffix == ".safetensors":
        try:
            return _plain(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or cut off ({error}); download it again") from error
    return _plain(_unpickle(path))


def build(weights: Mapping[str, Tensor], source: str) -> Wav2Lip:
    """A network with ``weights``, which have to fit exactly. ``source`` is named in errors."""
    wanted = entry_shapes()
    missing = sorted(wanted.keys() - weights.keys())
    surplus = sorted(weights.keys() - wanted.keys())
    if missing or surplus:
        detail = f"{len(missing)} entries are missing{_first(missing)} and {len(surplus)} unknown{_first(surplus)}"
        raise CheckpointError(f"{source} is not a Wav2Lip generator of 96 x 96 pixels: {detail}")
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(weights[name].shape)} instead of {shape}; checkpoints of "
                "other sizes (192, 256, 288, 384 pixels) are other networks and are not supported"
            )
        if weights[name].is_floating_point() and not bool(torch.isfinite(weights[name]).all()):
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite; download it again")
    with torch.device("meta"):
        network = Wav2Lip()
    # Left empty, since every entry is about to be written; the initial random numbers would take half a second.
    network = network.to_empty(device="cpu")
    network.load_state_dict(dict(weights), strict=True)
    return network.eval()


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights in the true architecture that make noise, the same for the same seed: a stand-in where there are none."""
    numbers = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in entry_shapes().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            weights[name] = torch.ones(shape)
        elif len(shape) == 4:
            # Keeps the variance about one through 50 units; with less, every picture would be plain grey.
            weights[name] = torch.randn(shape, generator=numbers) / math.prod(shape[1:]) ** 0.5
        elif name.endswith("weight"):
            weights[name] = 0.5 + torch.rand(shape, generator=numbers)
        else:
            weights[name] = 0.1 * torch.randn(shape, generator=numbers)
    return weights


def convert(source: Path, target: Path) -> None:
    """Write the weights of ``source`` as safetensors, checked against the network first."""
    save_file({name: value.contiguous() for name, value in load(source).state_dict().items()}, target)


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(f"{path} is a TorchScript program; a checkpoint of plain weights is needed")
    try:
        try:
            # Mapped: the optimiser's state, two thirds of a published file, is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files from before torch 1.6 cannot be mapped. Still weights only.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights (it could run code) or is damaged, so it is not loaded: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AssertionError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); download it again") from error


def _plain(content: Any) -> dict[str, Tensor]:
    """State dict inside ``content``, without the ``module.`` that data-parallel training puts before every name."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("the file holds no state dict; a Wav2Lip generator checkpoint is needed")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _first(names: list[str]) -> str:
    return f" ({names[0]}, …)" if names else ""


def main() -> None:
    """Command line of the conversion."""
    parser = argparse.ArgumentParser(description="Convert a Wav2Lip checkpoint to safetensors.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.target)
    except CheckpointError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
