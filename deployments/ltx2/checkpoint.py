"""What a checkpoint folder holds, told from its JSON files alone, so that a wrong path fails before weights load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.ltx2.versions import VERSIONS, Row, Version
from deployments.weights import CheckpointError, is_pointer

#: A file of this name at the top of a folder says that its weights are random and its output is noise.
RANDOM_MARKER = "RANDOM_WEIGHTS"

_LTX2_PARTS = ("transformer", "connectors", "text_encoder", "tokenizer", "vae", "audio_vae", "vocoder")
_LTX_VIDEO_PARTS = ("transformer", "text_encoder", "tokenizer", "vae")
#: The parts that are gigabytes, which is where a download breaks off.
_LARGE_PARTS = ("transformer", "text_encoder", "vae")
#: The subfolder of the model that joins two stages, where a checkpoint has one.
UPSAMPLER = "latent_upsampler"
#: What the loaders look for first: the list of a checkpoint's files, where there are several.
_INDEXES = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")

_LAYOUT = (
    "expected a diffusers folder: model_index.json naming an LTX2...Pipeline or LTX...Pipeline, beside one subfolder "
    "per component (transformer/, vae/, text_encoder/, ...), as in diffusers/LTX-2.3-Distilled-Diffusers on the Hub; "
    "a single .safetensors file is not enough"
)
_UPSAMPLER_LAYOUT = (
    "expected the folder of an LTX2LatentUpsamplerModel that doubles width and height, or a checkpoint's folder with "
    "one as latent_upsampler/, as in Lightricks/LTX-2.5-Diffusers on the Hub"
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Facts of a folder that decide how it is called."""

    version: Version
    #: Transformer blocks.
    layers: int
    #: Longest prompt in tokens; the prompt is padded to it.
    text_tokens: int
    random_weights: bool

    @property
    def row(self) -> Row:
        """What its version needs."""
        return VERSIONS[self.version]

    @property
    def has_audio(self) -> bool:
        """Whether the model makes sound."""
        return self.row.sound_rate is not None


def check(folder: Path) -> None:
    """:func:`read`, and that the weights are there: a cheap look before they load. Raises :class:`CheckpointError`."""
    facts = read(folder)
    for name in _LARGE_PARTS:
        _require_weights(folder / name)
    if facts.row.two_stages and (folder / UPSAMPLER).is_dir():
        check_upsampler(folder)


def check_upsampler(folder: Path) -> Path:
    """Where in ``folder`` the upsampler is, which is it or has it as ``latent_upsampler/``: a cheap look.

    Raises :class:`CheckpointError` when there is none, or one that does not double width and height and nothing else.
    """
    part = folder / UPSAMPLER if (folder / UPSAMPLER).is_dir() else folder
    config = _json(part / "config.json", _UPSAMPLER_LAYOUT)
    made_for = str(config.get("_class_name", ""))
    # The values that a config leaves out are those of the class.
    doubles = config.get("spatial_upsample", True) and (
        not config.get("use_rational_resampler", True) or config.get("rational_spatial_scale", 2.0) == 2.0
    )
    if made_for != "LTX2LatentUpsamplerModel" or not doubles or config.get("temporal_upsample", False):
        raise CheckpointError(f"{part}/config.json is for {made_for or 'no class'}; {_UPSAMPLER_LAYOUT}")
    _require_weights(part)
    return part


def _require_weights(part: Path) -> None:
    files = [*part.glob("*.safetensors"), *part.glob("*.bin")]
    if not files:
        raise CheckpointError(f"{part} holds no weights (*.safetensors); the download is not complete")
    # Of several variants some may well be pointers, but what is loaded is not.
    if all(_is_stand_in(path) for path in files):
        raise CheckpointError(f"{part} holds empty files or Git LFS pointers; fetch the weights by `git lfs pull`")
    for index in filter(Path.is_file, (part / each for each in _INDEXES)):
        listed = _json(index).get("weight_map")
        missing = set(listed.values()) - {path.name for path in files} if isinstance(listed, dict) else set()
        if missing:
            raise CheckpointError(f"{part} lacks {', '.join(sorted(missing))}; the download is not complete")


def _is_stand_in(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    return not head or is_pointer(head)


def read(folder: Path) -> Checkpoint:
    """Recognise the checkpoint in ``folder``. Raises :class:`CheckpointError`."""
    if not folder.is_dir():
        why = "is not a folder" if folder.exists() else "does not exist, so it is not a folder"
        raise CheckpointError(f"{folder} {why}; {_LAYOUT}")
    index = _json(folder / "model_index.json")
    # The Hub's folders name the text-to-video class; the components are the same as for image to video.
    pipeline = str(index.get("_class_name", ""))
    if not (pipeline.startswith("LTX") and pipeline.endswith("Pipeline")):
        raise CheckpointError(f"{folder}/model_index.json is for {pipeline or 'no class'}; {_LAYOUT}")
    ltx2 = pipeline.startswith("LTX2")
    missing = [part for part in (_LTX2_PARTS if ltx2 else _LTX_VIDEO_PARTS) if not (folder / part).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} lacks the subfolders {', '.join(missing)}; {_LAYOUT}")

    transformer = _json(folder / "transformer" / "config.json")
    version = _ltx2_version(folder, transformer) if ltx2 else Version.LTX_VIDEO
    return Checkpoint(
        version=version,
        layers=int(transformer["num_layers"]),
        text_tokens=_text_tokens(folder, version),
        random_weights=(folder / RANDOM_MARKER).is_file(),
    )


def _ltx2_version(folder: Path, transformer: dict[str, Any]) -> Version:
    encoder = str(_json(folder / "text_encoder" / "config.json").get("model_type", ""))
    if (
        encoder.startswith("gemma4")
        or transformer.get("use_keyframes_abs_pos_embedding", False)
        or not transformer.get("ff_bias", True)
    ):
        return Version.LTX_2_5
    return Version.LTX_2_3 if transformer.get("gated_attn", False) else Version.LTX_2_0


def _text_tokens(folder: Path, version: Version) -> int:
    """What the model was trained with, or less if the tokenizer allows less (tiny checkpoints do)."""
    allowed = int(_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length", 1024))
    tokens = min(VERSIONS[version].text_tokens, allowed)
    if version is Version.LTX_VIDEO:
        return tokens
    connectors = _json(folder / "connectors" / "config.json")
    # The connectors lay their registers over the padding in whole turns and refuse anything else.
    registers = int(connectors.get("video_connector_num_learnable_registers") or 1)
    tokens = tokens // registers * registers
    if tokens == 0:
        raise CheckpointError(f"{folder}: the tokenizer's {allowed} tokens are fewer than {registers} registers")
    return tokens


def _json(path: Path, layout: str = _LAYOUT) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {layout}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {layout}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; {layout}")
    return value
