"""What fits on a card and how: a plan from the sizes of a checkpoint's parts and from what memory is free.

Pure arithmetic, no torch: the head asks :func:`on_paper` what a card could make, a replica makes a :class:`Plan`
before it loads. No plan fills more than 92 % of a card. What a plan says is done by ``placement.py``.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from deployments.contract import SLOTS
from deployments.ltx2 import activations
from deployments.ltx2.activations import TILES, TOKEN, Activations, size_of
from deployments.ltx2.parts import PUBLISHED, Weights
from deployments.ltx2.recipes import RECIPE_NAMES, RecipeName, canvas, recipes_of
from deployments.ltx2.versions import VERSIONS, Version
from deployments.weights import CheckpointError

GIB = 2**30
#: Share of a card that a plan may fill. The rest is for fragments and for the workspaces of convolutions.
FILL = 0.92
#: Of a card's nominal GiB, what its driver leaves to programs, and what CUDA's own context takes of that.
_USABLE, _CONTEXT = 0.98, GIB // 2
#: Host memory of a replica without a byte of weights: Python, torch and CUDA's libraries.
_PROCESS = 6 * GIB
#: The largest clip that the parameters allow: five seconds of 1920 x 1088 at 24 fps, a little more for other shapes.
LARGEST = size_of("fast", 1920, 1088, 121) // 8 * 9 // TOKEN * TOKEN
#: What has to fit for an arrangement to be chosen over slower ones that fit more: five seconds of 720p.
ENOUGH = size_of("fast", 1280, 704, 121)
#: What reads prompts.
TEXT = ("text_encoder", "connectors")

#: - ``resident``: all on the card. A job that needs the room has the text encoder moved to the host meanwhile.
#: - ``text streamed``: the text encoder and the connectors stay on the host, and go through the card tensor by tensor
#:   for a prompt that was never seen: a second or two.
#: - ``fp8``: as well, the transformer's weights are kept in eight bits, and cast as they are used.
#: - ``streamed``: as well, these stay on the host and go through the card at each step.
ArrangementName = Literal["resident", "text streamed", "fp8", "streamed"]
#: Fastest first.
ARRANGEMENTS: tuple[ArrangementName, ...] = ("resident", "text streamed", "fp8", "streamed")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    #: Of the card, and of these what others hold: CUDA's context, other processes.
    card: int
    used: int = 0
    #: Of the host, as far as this process may have them.
    host: int
    #: The card is the host: weights are where they are, and moving them makes no room.
    shared: bool = False

    @property
    def room(self) -> int:
        """What weights and activations may take of the card."""
        return int(self.card * FILL) - self.used


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a checkpoint is kept and what it can make, on one card."""

    arrangement: ArrangementName
    #: By recipe, the first being the default: the largest :func:`size_of` that fits in whatever shape. 0: none does.
    largest: Mapping[RecipeName, int]
    #: Whether the host has room for the text encoder while a job needs its place.
    parks: bool
    #: Host memory at the most, with a job in each slot.
    host: int
    version: Version
    weights: Weights
    activations: Activations
    memory: Memory

    def fits(self, recipe: RecipeName, width: int, height: int, frames: int) -> bool:
        """Whether this clip can be made."""
        return size_of(recipe, width, height, frames) <= self.largest.get(recipe, 0)

    def tile(self, recipe: RecipeName, width: int, height: int, frames: int) -> int | None:
        """Side of the largest tiles in which it can be decoded; None: at once, which takes the least time."""
        kept = self.kept(parked=self.parked(recipe, width, height, frames))
        made = canvas(recipe, width, height)
        for tile in (None, *TILES):
            if kept + activations.decoding(self.activations, *made, frames, tile) <= self.memory.room:
                return tile
        return min(TILES)

    def parked(self, recipe: RecipeName, width: int, height: int, frames: int) -> bool:
        """Whether it needs the text encoder's place, in whatever tiles it is decoded."""
        if not self.parks:
            return False
        least = min(max(self._work(recipe, width, height, frames, tile).values()) for tile in (None, *TILES))
        return self.kept(parked=False) + least > self.memory.room

    def streams(self, part: str) -> bool:
        """Whether it stays on the host, and goes through the card as it is used."""
        if part in TEXT:
            return self.arrangement != "resident"
        return part == "transformer" and self.arrangement == "streamed"

    def off_card(self, part: str) -> bool:
        """Whether it is not loaded onto the card: it is streamed, or has to be made smaller first."""
        return self.streams(part) or (self.arrangement == "fp8" and part == "transformer")

    def kept(self, *, parked: bool) -> int:
        """Bytes of weights on the card while a clip is made, of streamed ones what is there at a time."""
        return _kept(self.arrangement, self.weights, parked=parked)

    def peaks(self, recipe: RecipeName, width: int, height: int, frames: int) -> dict[str, int]:
        """Bytes on the card by phase, weights included."""
        clip = recipe, width, height, frames
        kept = self.kept(parked=self.parked(*clip))
        work = self._work(*clip, self.tile(*clip))
        return _encoding(self.arrangement, self.weights, self.activations) | {
            phase: kept + size for phase, size in work.items()
        }

    def _work(self, recipe: RecipeName, width: int, height: int, frames: int, tile: int | None) -> dict[str, int]:
        """Bytes beside the weights by phase, once the prompt is encoded."""
        size = size_of(recipe, width, height, frames)
        needs, made = self.activations, canvas(recipe, width, height)
        phases = {"image encode": needs.picture * made[0] * made[1]}
        denoising = activations.denoising(needs, self.version, recipe, size)
        if recipe == "fast":
            phases["denoise, stage 1"] = activations.denoising(needs, self.version, recipe, size // 4)
            phases["upsample"] = needs.upsampled * (size // TOKEN)
            phases["denoise, stage 2"] = denoising
        else:
            phases["denoise"] = denoising
        name = "decode" if tile is None else f"decode, tiles of {tile}"
        phases[name] = activations.decoding(needs, *made, frames, tile)
        if needs.sound:
            phases["vocoder"] = needs.sound + made[0] * made[1] * frames * needs.pixel
        return phases

    def __str__(self) -> str:
        """What a replica logs when it starts: where its weights are, and what the phases of a large clip take."""
        memory = self.memory
        lines = [
            f"LTX-{self.version} {self.arrangement}: {_gib(self.kept(parked=False))} GiB of weights on the card, which "
            f"has {_gib(memory.card)} GiB, {_gib(memory.room)} for a plan; host {_gib(self.host)} GiB",
            "weights, GiB: " + ", ".join(f"{name} {_gib(part.size)}" for name, part in self.weights.items()),
        ]
        for recipe, largest in self.largest.items():
            shape = self._example(recipe)
            if shape is None:
                lines.append(f"{recipe}: nothing fits")
                continue
            peaks = ", ".join(f"{phase} {_gib(size)}" for phase, size in self.peaks(recipe, *shape).items())
            lines.append(f"{recipe}: up to {largest / 1e6:.0f} M pixels; {shape[0]}x{shape[1]}x{shape[2]}: {peaks}")
        return "\n".join(lines)

    def _example(self, recipe: RecipeName) -> tuple[int, int, int] | None:
        """The largest clip of a common shape and five seconds, or less."""
        return next((shape for shape in SHAPES if self.fits(recipe, *shape)), None)


#: Widths, heights and frames that are talked about, largest first.
SHAPES = (
    (1920, 1088, 121),
    (1536, 1024, 121),
    (1280, 704, 121),
    (1024, 576, 121),
    (768, 512, 121),
    (512, 288, 121),
    (256, 256, 9),
)


def plan(
    version: Version,
    weights: Weights,
    memory: Memory,
    *,
    width: int,
    recipes: Sequence[RecipeName] = RECIPE_NAMES,
) -> Plan:
    """The fastest arrangement in which clips of :data:`ENOUGH` fit, else the one in which the largest do.

    ``width`` is the transformer's. Raises :class:`CheckpointError` when nothing fits, with what would be needed.
    """
    # On the CPU weights are in float32.
    needs = activations.of(version, width, item_bytes=4 if memory.shared else 2)
    plans = [
        made
        for name in (ARRANGEMENTS[:1] if memory.shared else ARRANGEMENTS)
        if (made := _planned(name, version, weights, needs, memory, recipes)) is not None
    ]
    if not plans:
        least = ARRANGEMENTS[0] if memory.shared else ARRANGEMENTS[-1]
        card = (max(_encoding(least, weights, needs).values()) + memory.used) / FILL
        host = _host(least, weights, 0, parks=False)
        raise CheckpointError(
            f"this checkpoint needs a card of {card / GIB:.0f} GiB or more and {host / GIB:.0f} GiB of host memory; "
            f"here are {memory.card / GIB:.1f} GiB, {memory.used / GIB:.1f} of them in use, and "
            f"{memory.host / GIB:.1f} GiB on the host"
        )
    enough = (each for each in plans if each.largest[recipes[0]] >= ENOUGH)
    return next(enough, None) or max(plans, key=lambda each: each.largest[recipes[0]])


def on_paper(gib: int) -> Mapping[str, int]:
    """By recipe, the largest :func:`size_of` that a card sold as one of ``gib`` makes with every LTX-2 there is.

    Of a host that has what the plan needs. Empty where some checkpoint does not fit.
    """
    try:
        plans = [paper(each, 4096, gib) for each in Version if each is not Version.LTX_VIDEO]
    except CheckpointError:
        return {}
    return {recipe: min(each.largest[recipe] for each in plans) for recipe in RECIPE_NAMES}


def paper(version: Version, width: int, gib: int) -> Plan:
    """The plan for a published checkpoint on a card sold as one of ``gib``. Raises :class:`CheckpointError`."""
    recipes = recipes_of(two_stages=VERSIONS[version].two_stages)
    memory = Memory(card=int(gib * _USABLE * GIB), used=_CONTEXT, host=1024 * GIB)
    return plan(version, PUBLISHED[version, width], memory, width=width, recipes=recipes)


def _planned(
    name: ArrangementName,
    version: Version,
    weights: Weights,
    needs: Activations,
    memory: Memory,
    recipes: Sequence[RecipeName],
) -> Plan | None:
    """This arrangement, or None if it does not even load or encode a prompt."""
    if max(_encoding(name, weights, needs).values()) > memory.room:
        return None
    parks = name == "resident" and not memory.shared and _host(name, weights, LARGEST, parks=True) <= memory.host
    if not memory.shared and _host(name, weights, 0, parks=parks) > memory.host:
        return None
    room = memory.room - _kept(name, weights, parked=parks)

    def fits(recipe: RecipeName, size: int) -> bool:
        held = memory.shared or _host(name, weights, size, parks=parks) <= memory.host
        return held and _most(needs, version, recipe, size) <= room

    largest = {recipe: _largest(functools.partial(fits, recipe)) for recipe in recipes}
    if not any(largest.values()):
        return None
    return Plan(
        arrangement=name,
        largest=MappingProxyType(largest),
        parks=parks,
        host=memory.room if memory.shared else _host(name, weights, max(largest.values()), parks=parks),
        version=version,
        weights=weights,
        activations=needs,
        memory=memory,
    )


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest size that does."""
    good, bad = 0, LARGEST // TOKEN + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle * TOKEN) else (good, middle)
    return good * TOKEN


def _most(needs: Activations, version: Version, recipe: RecipeName, size: int) -> int:
    """Bytes that suffice beside the weights for any clip of ``size``, once its prompt is encoded."""
    picture = min(size // (activations.MIN_FRAMES + 7), activations.MAX_PICTURE)
    return max(
        activations.denoising(needs, version, recipe, size),
        activations.decoding_at_most(needs, size),
        needs.picture * picture,
        needs.upsampled * (size // TOKEN),
        needs.sound + needs.pixel * size,
    )


def _kept(name: ArrangementName, weights: Weights, *, parked: bool) -> int:
    rest = sum(part.size for each, part in weights.items() if each not in (*TEXT, "transformer"))
    text = sum(weights[each].size for each in TEXT if each in weights)
    transformer = weights["transformer"]
    if name == "resident":
        return rest + transformer.size + (0 if parked else text)
    if name == "text streamed":
        return rest + transformer.size
    # The layer that computes is as wide as it was; where the others are is what tells these two apart.
    return rest + transformer.pair + (transformer.size if name == "fp8" else transformer.pair) // 2


def _encoding(name: ArrangementName, weights: Weights, needs: Activations) -> dict[str, int]:
    """Bytes on the card while a prompt is encoded, by the part that does it."""
    kept = _kept(name, weights, parked=False)
    work = {"text_encoder": needs.text, "connectors": needs.connectors}
    return {
        each: kept + work[each] + (0 if name == "resident" else weights[each].pair) for each in TEXT if each in weights
    }


def _host(name: ArrangementName, weights: Weights, size: int, *, parks: bool) -> int:
    """Bytes on the host with a clip of ``size`` in each slot, or while the weights are loaded if that is more."""
    text = sum(weights[each].size for each in TEXT if each in weights)
    transformer = weights["transformer"].size
    kept = (text if name != "resident" or parks else 0) + (transformer // 2 if name == "streamed" else 0)
    # Cast before anything else is there.
    loading = transformer if name in ("fp8", "streamed") else 0
    return _PROCESS + max(loading, kept + SLOTS * 3 * size)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
