"""What a clip needs of a device besides the weights: a few coefficients per generation, and the arithmetic over them.

Pure numbers, no torch: the head reads them too. They are peak live bytes, counted storage by storage on the full-size
shapes (``make memory-table``), for weights of two bytes; tests hold them to that count within 10 %. The transformer's
peak is linear in the tokens of the clip and does not depend on its depth, since nothing is kept for gradients. The
VAE's is linear in the pixels that it decodes at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from types import MappingProxyType

from deployments.ltx2.recipes import RecipeName, canvas
from deployments.ltx2.versions import VERSIONS, Version

#: Pixels of all frames that one token stands for: a latent is 32 x 32 pixels of 8 frames. The first is of one frame
#: and counts as much, which is why a clip of f frames has (f + 7) / 8 latent frames.
TOKEN = 32 * 32 * 8
#: Largest picture, and fewest and most frames, that the parameters allow (see ``spec.py``).
MAX_PICTURE = 1920 * 1920
MIN_FRAMES = 9
MAX_FRAMES = 601
#: Sides in pixels of the tiles that the VAE may decode one after the other, largest first, and how many times as long
#: as a side of the picture those along it are together, at most.
TILES: Mapping[int, float] = MappingProxyType({512: 1.22, 384: 1.3, 256: 1.56})
#: Pixels that neighbouring tiles share, as in diffusers and in Lightricks' own code.
OVERLAP = 64
#: What the decoded pixels, three of two bytes, are copied to between decoding and uint8: the frames, what scales them
#: and what clamps that.
COPIES = 3


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Peak bytes by phase, beyond the weights, of a pipeline in bfloat16 (twice as many in float32)."""

    #: The text encoder with one prompt, its stack of hidden states included.
    text: int
    #: The connectors with what that made.
    connectors: int = 0
    #: One call of the transformer per batch item: always (with ten seconds of sound), and per token.
    call: int
    token: int
    #: The upsampler per token that it makes.
    upsampled: int = 0
    #: The VAE's encoder per pixel of the picture.
    picture: int = 182
    #: Its decoder per pixel that it decodes at once, of all frames and one more.
    decoded: int
    #: Audio VAE and vocoder with ten seconds of sound.
    sound: int = 0
    #: Bytes of one decoded pixel.
    pixel: int = 6


_LTX_2_3 = Activations(
    text=1_157_103_616,
    connectors=1_688_244_232,
    call=36_749_784,
    token=303_388,
    upsampled=8_256,
    decoded=72,
    sound=215_810_856,
)
#: By generation and width of the transformer.
MEASURED: Mapping[tuple[Version, int], Activations] = MappingProxyType(
    {
        (Version.LTX_2_0, 4096): Activations(
            text=1_157_103_616,
            connectors=2_504_803_744,
            call=39_739_864,
            token=336_156,
            upsampled=8_256,
            decoded=85,
            sound=153_394_432,
        ),
        (Version.LTX_2_3, 4096): _LTX_2_3,
        (Version.LTX_2_5, 4096): _LTX_2_3,
        # 13B and 2B.
        (Version.LTX_VIDEO, 4096): Activations(text=16_778_240, call=2_097_920, token=237_840, decoded=100),
        (Version.LTX_VIDEO, 2048): Activations(text=16_778_240, call=1_573_632, token=119_056, decoded=100),
    }
)
#: Of the tiny random checkpoints, in float32, of whatever generation.
TINY = Activations(text=8_000_000, call=4_000_000, token=12_500, decoded=36, pixel=12)


def of(version: Version, width: int, item_bytes: int = 2) -> Activations:
    """For a transformer of this width whose weights have this many bytes an element.

    One that was not measured counts as the next wider that was, or as the widest.
    """
    if width < min(known for _, known in MEASURED) // 2:
        return TINY
    widths = sorted(known for of, known in MEASURED if of is version)
    measured = MEASURED[version, next((known for known in widths if known >= width), widths[-1])]
    return replace(measured, **{name: value * item_bytes // 2 for name, value in asdict(measured).items()})


def size_of(recipe: RecipeName, width: int, height: int, frames: int) -> int:
    """How large a clip is for the memory: pixels of all frames as made, the first counted eightfold.

    A multiple of :data:`TOKEN`. Two clips of one size need the same of the transformer, whatever their shapes.
    """
    made_width, made_height = canvas(recipe, width, height)
    return made_width * made_height * (frames + 7)


def denoising(activations: Activations, version: Version, recipe: RecipeName, size: int) -> int:
    """Bytes of the recipe's largest call of the transformer, for a clip of ``size``."""
    items = max(VERSIONS[version].guided_items) if recipe == "quality" else 1
    return items * (activations.call + activations.token * (size // TOKEN))


def decoding(activations: Activations, width: int, height: int, frames: int, tile: int | None) -> int:
    """Bytes of decoding ``width`` x ``height`` as made, in tiles of this side or (None) at once, up to uint8."""
    whole = width * height * frames * activations.pixel
    if tile is None or (width <= tile and height <= tile):
        return max(activations.decoded * width * height * (frames + 1), COPIES * whole)
    held = most = 0
    for wide, high in _tiles(width, height, tile):
        most = max(most, held + activations.decoded * wide * high * (frames + 1))
        held += wide * high * frames * activations.pixel
    # All tiles, the rows they are joined to, and the frames that those are joined to.
    return max(most, held + 2 * whole, COPIES * whole)


def decoding_at_most(activations: Activations, size: int) -> int:
    """Bytes that suffice to decode any clip of ``size``, in tiles or not."""
    at_once = activations.decoded * size
    tiled = (
        min(at_once, activations.decoded * tile**2 * (MAX_FRAMES + 1)) + ceil((times**2 + 2) * activations.pixel * size)
        for tile, times in TILES.items()
    )
    return max(min(at_once, *tiled), COPIES * activations.pixel * size)


def stride(pixels: int, tile: int) -> int:
    """Distance between tiles along a side of ``pixels``: the tile less :data:`OVERLAP`, or a latent less or more.

    Such that no last tile is one latent wide: the reflecting padding of LTX-2.0's decoder needs two.
    """
    usual = (tile - OVERLAP) // 32
    return next(step for step in (usual, usual - 1, usual + 1) if pixels // 32 % step != 1) * 32


def _tiles(width: int, height: int, tile: int) -> Iterator[tuple[int, int]]:
    """Widths and heights of the tiles, in the order in which they are decoded."""
    for top in range(0, height, stride(height, tile)):
        for left in range(0, width, stride(width, tile)):
            yield min(tile, width - left), min(tile, height - top)
