"""What fits on which card: the count of live bytes against the plan's arithmetic, and the table that operators read.

``make memory-table`` counts sizes and phases of every checkpoint on no device (minutes, below 3 GiB), says how far the
plan is from each count, fails where that is more than 10 %, and writes ``docs/memory.md``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from deployments.ltx2 import activations, memory
from deployments.ltx2.activations import MEASURED, decoding, denoising, size_of
from deployments.ltx2.memory import GIB, SHAPES, Plan
from deployments.ltx2.parts import PUBLISHED
from deployments.ltx2.recipes import RecipeName
from deployments.ltx2.versions import Version
from deployments.weights import CheckpointError
from tests.benchmarks.activations import Clip, Counted, ltx_video
from tests.benchmarks.full_size import components
from tests.benchmarks.live_bytes import bytes_of

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
#: Cards that can be rented, in GiB as they are sold.
CARDS = (24, 40, 48, 80, 141)
NAMES = {
    (Version.LTX_2_0, 4096): "LTX-2.0",
    (Version.LTX_2_3, 4096): "LTX-2.3",
    (Version.LTX_2_5, 4096): "LTX-2.5",
    (Version.LTX_VIDEO, 4096): "LTX-Video 13B",
    (Version.LTX_VIDEO, 2048): "LTX-Video 2B",
}
#: Share by which a plan may be beside the count.
TOLERANCE = 0.1
#: Frames of five and ten seconds.
_LENGTHS = (121, 241)
_HEAD = """# What fits on which card

LTX-2's replica plans its memory when it starts: from the bytes of the checkpoint's parts, which it reads in the files'
headers, and from what is free on the card and on the host. It takes the fastest arrangement in which five seconds of
1280x704 fit, else the one in which the most does, and fills no more than 92 % of the card.

- **resident**: all on the card. For a clip that needs the room, the text encoder and the connectors go to the host
  (`moves` below), and come back for the next new prompt.
- **text streamed**: these two stay on the host. For a new prompt they go through the card, tensor by tensor: a second
  or two of PCIe.
- **fp8**: as well, the transformer's weights are kept in eight bits, and cast layer by layer as they are used. The
  video is not bit by bit what 16 bits make.
- **streamed**: as well, these eight bits stay on the host, and go through the card at each step.

A clip is decoded at once where that fits, else in tiles of 512, 384 or 256 pixels. Where the host lacks the memory in
the last column, the next arrangement is taken, or none.

Nothing here was measured on a GPU. Weights are counted on full-size models without weights, activations as peak live
bytes on models of full width (one layer of the transformer is enough: nothing is kept for gradients). The arithmetic
in `deployments/ltx2/activations.py` is within 10 % of that count for every phase; what one operation needs within
itself, such as a convolution's workspace, is not in it, and the last 8 % of the card are for that.
`make memory-table` counts anew and writes this page.

"""
_FOOT = """
GiB are what is in use at the peak of `fast` (`standard` for LTX-Video) making the largest clip in the row, with 0.5 GiB
for CUDA itself. Frames are those of 24 a second: 121 are five seconds, 241 are ten. Cards count as 98 % of what they
are sold as.
"""


def page() -> str:
    """``docs/memory.md``, from the plan's arithmetic alone."""
    return _HEAD + "\n".join(_rows()) + "\n" + _FOOT


def _rows() -> Iterator[str]:
    yield "| card | checkpoint | arrangement | `fast` | `standard` | `quality` | GiB on the card | GiB of the host |"
    yield "|---:|---|---|---|---|---|---:|---:|"
    for gib in CARDS:
        for checkpoint, name in NAMES.items():
            try:
                plan = memory.paper(*checkpoint, gib)
            except CheckpointError:
                yield f"| {gib} | {name} | does not fit | | | | | |"
                continue
            default = next(iter(plan.largest))
            shape = _largest(plan, default)
            used = max(plan.peaks(default, *shape).values()) + plan.memory.used if shape else 0
            sizes = " | ".join(_told(plan, recipe) for recipe in ("fast", "standard", "quality"))
            moves = ", moves" if plan.parks else ""
            yield (
                f"| {gib} | {name} | {plan.arrangement}{moves} | {sizes} | {used / GIB:.1f} | {plan.host / GIB:.0f} |"
            )


def _told(plan: Plan, recipe: RecipeName) -> str:
    """The largest picture of each length."""
    if recipe not in plan.largest:
        return "-"
    told = []
    for frames in _LENGTHS:
        fitting = [shape for shape in _shapes(frames) if plan.fits(recipe, *shape)]
        told.append(f"{fitting[0][0]}x{fitting[0][1]}x{frames}" if fitting else f"nothing of {frames}")
    return ", ".join(told)


def _largest(plan: Plan, recipe: RecipeName) -> tuple[int, int, int] | None:
    shapes = [shape for frames in _LENGTHS for shape in _shapes(frames) if plan.fits(recipe, *shape)]
    return max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2], default=None)


def _shapes(frames: int) -> list[tuple[int, int, int]]:
    """Pictures that are talked about, largest first."""
    return [(width, height, frames) for width, height, _ in SHAPES]


def deviations(checkpoint: tuple[Version, int]) -> Iterator[tuple[str, int, int]]:
    """What, planned and counted, in bytes."""
    version, width = checkpoint
    modules = ltx_video(width, 28 if width == 2048 else 48) if version is Version.LTX_VIDEO else components(version)
    for name, module in modules.items():
        yield f"weights of {name}", PUBLISHED[checkpoint][name].size, bytes_of(module)
    del modules
    needs, counted = MEASURED[checkpoint], Counted(version, width)
    yield "text_encoder", needs.text, counted.text()
    if needs.connectors:
        yield "connectors", needs.connectors, counted.connectors()
        yield "vocoder", needs.sound, counted.sound()
    for width_, height, frames in ((512, 320, 121), (1024, 576, 121), (1280, 704, 241), (1920, 1088, 121)):
        clip = Clip(width=width_, height=height, frames=frames)
        told = f"{width_}x{height}x{frames}"
        for recipe, items in (("standard", 1), ("quality", 2)):
            planned = denoising(needs, version, recipe, size_of(recipe, width_, height, frames))
            yield f"denoise {told} {recipe}", planned, counted.call(Clip(**{**vars(clip), "items": items}))
        yield f"image encode {told}", needs.picture * width_ * height, counted.picture(clip)
        if needs.upsampled:
            yield f"upsample {told}", needs.upsampled * clip.tokens, counted.upsampled(clip)
        for tile in (None, *activations.TILES):
            planned = decoding(needs, width_, height, frames, tile)
            yield f"decode {told}, tiles {tile}", planned, counted.decoding(clip, tile)


def main() -> None:
    far = 0
    for checkpoint, name in NAMES.items():
        for what, planned, counted in deviations(checkpoint):
            share = planned / counted - 1
            far += abs(share) > TOLERANCE
            print(
                f"{name:14} {what:42} plan {planned / GIB:7.3f} GiB, count {counted / GIB:7.3f}, {share:+.1%}",
                flush=True,
            )
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
    if far:
        sys.exit(f"{far} are further than {TOLERANCE:.0%} from the count")


if __name__ == "__main__":
    main()
