"""How many bytes the components of a checkpoint are, told before any of them is loaded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deployments.ltx2.checkpoint import UPSAMPLER
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError

#: Subfolders that are loaded, where a checkpoint has them.
_LOADED = ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder", UPSAMPLER)
#: Names that the loaders prefer, of a list of files and of a single one; others are variants.
_STEMS = ("diffusion_pytorch_model", "model")
#: A header is a list of tensors: more than this is damage.
_MAX_HEADER = 100 * 1024**2


@dataclass(frozen=True)
class Part:
    """Bytes of a component's weights as loaded."""

    size: int
    #: Of its two largest tensors, which is what there is at a time of one that is streamed: one used, one fetched.
    pair: int = 0


Weights = Mapping[str, Part]


def _published(**sizes: int | tuple[int, int]) -> Weights:
    return MappingProxyType(
        {name: Part(*size) if isinstance(size, tuple) else Part(size) for name, size in sizes.items()}
    )


_LTX_2_3 = _published(
    text_encoder=(24_374_684_898, 2_131_722_240),
    connectors=(6_344_455_168, 2_312_110_080),
    transformer=(37_977_676_288, 436_207_616),
    vae=1_452_212_450,
    audio_vae=106_496_804,
    vocoder=258_170_150,
    latent_upsampler=995_735_808,
)
_T5, _VAE = (9_524_621_312, 347_078_656), 2_493_827_558
#: The published checkpoints in bfloat16, by generation and width of the transformer. A test counts them anew.
PUBLISHED: Mapping[tuple[Version, int], Weights] = MappingProxyType(
    {
        (Version.LTX_2_0, 4096): _published(
            text_encoder=(24_374_684_898, 2_131_722_240),
            connectors=(2_862_950_400, 1_563_033_600),
            transformer=(37_752_349_184, 335_544_320),
            vae=2_444_959_714,
            audio_vae=106_496_804,
            vocoder=111_185_604,
            latent_upsampler=995_735_908,
        ),
        (Version.LTX_2_3, 4096): _LTX_2_3,
        (Version.LTX_2_5, 4096): MappingProxyType(
            {
                **_LTX_2_3,
                "text_encoder": Part(23_814_703_714, 2_131_230_720),
                "transformer": Part(37_975_718_400, 436_207_616),
            }
        ),
        # 13B and 2B.
        (Version.LTX_VIDEO, 4096): _published(text_encoder=_T5, transformer=(26_085_138_688, 335_544_320), vae=_VAE),
        (Version.LTX_VIDEO, 2048): _published(text_encoder=_T5, transformer=(3_846_770_944, 83_886_080), vae=_VAE),
    }
)


def read(folder: Path, item_bytes: int, joint: Path | None = None) -> Weights:
    """The parts of the checkpoint in ``folder``, from the headers of its files, loaded at ``item_bytes`` an element.

    ``joint`` is the folder of another upsampler. Raises :class:`CheckpointError` for a file that is damaged.
    """
    folders = {name: folder / name for name in _LOADED if (folder / name).is_dir()}
    if joint is not None:
        folders[UPSAMPLER] = joint
    return MappingProxyType({name: _part(part, item_bytes) for name, part in folders.items()})


def width_of(folder: Path) -> int:
    """Channels of the transformer."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def _part(folder: Path, item_bytes: int) -> Part:
    sizes = sorted((size for path in _files(folder) for size in _tensors(path, item_bytes)), reverse=True)
    return Part(sum(sizes), sum(sizes[:2]))


def _files(folder: Path) -> list[Path]:
    """Those that are loaded."""
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def _tensors(path: Path, item_bytes: int) -> Iterator[int]:
    """Bytes of each tensor. The layout of safetensors: eight bytes that say how long the JSON is that follows."""
    if path.suffix != ".safetensors":
        # Pickled: the file is as large as they are together.
        yield path.stat().st_size
        return
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                # Floating point is cast to one type, whatever it was.
                floating = str(tensor["dtype"]).startswith(("F", "BF"))
                yield prod(tensor["shape"]) * item_bytes if floating else end - begin
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
