"""LTX-2 at its full size on a device, ours beside diffusers alone: seconds by stage, memory, FLOP/s, clips an hour."""

import itertools
import math
import resource
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.ltx2 import memory, placement
from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.engine import Footage, LTX2Engine
from deployments.ltx2.pipeline import Pipeline, Shot
from deployments.ltx2.recipes import RecipeName, canvas
from deployments.ltx2.spec import DEFAULT_NEGATIVE_PROMPT
from deployments.ltx2.versions import Version
from tests.benchmarks.clock import Clock, measured
from tests.benchmarks.floor import Card, Format, Model, card_of
from tests.benchmarks.full_size import FULL, Depth, components, facts_of, pipeline
from tests.benchmarks.plain import Plain
from tests.benchmarks.report import card_state, spread, table
from tests.benchmarks.timeline import Timeline

VERSION = Version.LTX_2_3
STAGES = ("text", "first frame", "denoise", "upsample", "decode", "rest", "all", "encode")
#: About as long as real ones, a token a letter.
_PROMPT = "Clip {}: a street at dawn after rain, a tram comes round the corner, its bell rings twice, pigeons fly up."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    recipes: Sequence[RecipeName]
    wanted: Format
    depth: Depth
    warm_ups: int
    runs: int


@dataclass
class Measured:
    """Runs of one maker by one recipe."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    #: Of the device; on a CPU of the process since it began.
    peak_bytes: int = 0

    def add(self, seconds: dict[str, float], calls: dict[str, int], peak_bytes: int) -> None:
        """One more run."""
        for stage, value in seconds.items():
            self.seconds.setdefault(stage, []).append(value)
        self.calls = calls
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


class Bench:
    """Both makers over the same weights, in turns, so that a card which grows warm is warm for both."""

    def __init__(self, plan: Plan, facts: Checkpoint, modules: Mapping[str, Any], model: Model) -> None:
        """``modules`` are on the device, and ``model`` the same on ``meta``."""
        self._plan = plan
        self._model = model
        pipe = pipeline(modules, facts.text_tokens)
        self._device = pipe.device
        self._vae = pipe.vae
        #: What a replica plans for this card; None: there is none.
        self.memory: memory.Plan | None = None
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            self.memory = memory.paper(facts.version, 4096, round(total / memory.GIB))
        upsampler = modules["latent_upsampler"]
        self._plain = Plain(pipe, facts, upsampler)
        self._pipeline = Pipeline.of(pipe, facts, upsampler)
        # An engine loads its weights itself; these are there already.
        self._engine = LTX2Engine.__new__(LTX2Engine)
        self._engine._pipeline = self._pipeline
        self._timeline = Timeline(modules, self._device)
        self._numbers = itertools.count(1)

    def run(self, workdir: Path) -> dict[RecipeName, dict[str, Any]]:
        """Everything, by recipe."""
        card = card_of(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None
        return {recipe: self._recipe(recipe, card, workdir) for recipe in self._plan.recipes}

    def _recipe(self, recipe: RecipeName, card: Card | None, workdir: Path) -> dict[str, Any]:
        planned = self._tiled(recipe)
        plain, ours = Measured(), Measured()
        states = []
        for number in range(self._plan.warm_ups + self._plan.runs):
            shot = self._shot(recipe)
            theirs, made = self._by_diffusers(shot, workdir), self._by_us(shot, workdir)
            if number >= self._plan.warm_ups:
                plain.add(*theirs[1:])
                ours.add(*made[1:])
                states.append(card_state(self._device))
        stages = self._model.stages(recipe, self._plan.wanted)
        tflop = {stage: round(each.work.flops / 1e12, 3) for stage, each in stages.items()}
        theirs_s, ours_s = (statistics.median(each.seconds["all"]) for each in (plain, ours))
        return {
            "tflop": tflop,
            "diffusers": _figures(plain, tflop["denoise"], card, overlaps=False),
            "ours": _figures(ours, tflop["denoise"], card, overlaps=True),
            "planned_gib": planned,
            "speedup": round(theirs_s / ours_s, 3),
            "psnr_db": round(_psnr(theirs[0], made[0]), 1),
            "card": states,
        }

    def _tiled(self, recipe: RecipeName) -> float | None:
        """Decode in such tiles as a replica would, both makers alike. GiB that the plan has at the peak."""
        if self.memory is None:
            return None
        wanted = self._plan.wanted
        clip = recipe, wanted.width, wanted.height, wanted.frames
        placement.tile(self._vae, *canvas(recipe, wanted.width, wanted.height), self.memory.tile(*clip))
        return round(max(self.memory.peaks(*clip).values()) / memory.GIB, 2)

    def _shot(self, recipe: RecipeName) -> Shot:
        wanted = self._plan.wanted
        number = next(self._numbers)
        return Shot(
            # One that was never seen: neither of them finds it in a cache.
            prompt=_PROMPT.format(number),
            negative_prompt=DEFAULT_NEGATIVE_PROMPT,
            image=Image.linear_gradient("L").convert("RGB").resize((wanted.width, wanted.height)),
            width=wanted.width,
            height=wanted.height,
            frames=wanted.frames,
            fps=wanted.fps,
            recipe=recipe,
            seed=number,
        )

    def _by_diffusers(self, shot: Shot, workdir: Path) -> tuple[np.ndarray, dict[str, float], dict[str, int], int]:
        self._forget()
        with self._timeline.watching():
            film = self._plain.render(shot)
        encoding = Clock()
        with measured(encoding):
            self._plain.encode(film, shot.fps, workdir / "plain.mp4")
        pixels = (film.frames * 255).round().clip(0, 255).astype(np.uint8)
        return pixels, {**self._timeline.seconds, "encode": encoding.wall}, self._timeline.calls, self._peak()

    def _by_us(self, shot: Shot, workdir: Path) -> tuple[np.ndarray, dict[str, float], dict[str, int], int]:
        self._forget()
        with self._timeline.watching():
            clip = self._pipeline.render(shot, lambda stage, fraction: None)
        encoding = Clock()
        with measured(encoding):
            self._engine.publish(Footage(shot=shot, clip=clip), workdir)
        return clip.frames, {**self._timeline.seconds, "encode": encoding.wall}, self._timeline.calls, self._peak()

    def _forget(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _figures(measured: Measured, denoise_tflop: float, card: Card | None, *, overlaps: bool) -> dict[str, Any]:
    seconds = {stage: spread(measured.seconds[stage]) for stage in STAGES if stage in measured.seconds}
    run, encode = seconds["all"]["median"], seconds["encode"]["median"]
    tflops = denoise_tflop / seconds["denoise"]["median"]
    return {
        "seconds": seconds,
        "calls": measured.calls,
        "peak_gib": round(measured.peak_bytes / 2**30, 2),
        "denoise_tflops": round(tflops, 3),
        "mfu": round(tflops / card.tflops, 3) if card else None,
        # A replica encodes while the next clip is made.
        "clips_per_hour": round(3600 / (max(run, encode) if overlaps else run + encode), 1),
    }


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float32) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def on_device(plan: Plan, device: torch.device) -> tuple[dict[str, Any], list[str]]:
    """Figures and a table. On CUDA the weights alone are 67 GiB, so little else may be on the card."""
    facts = facts_of(VERSION, plan.depth)
    # Without AVX-512, processors convolve bfloat16 at a hundredth of the speed.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    modules = components(VERSION, device=device, dtype=dtype, depth=plan.depth)
    bench = Bench(plan, facts, modules, Model(facts, components(VERSION, depth=plan.depth)))
    with tempfile.TemporaryDirectory() as workdir:
        recipes = bench.run(Path(workdir))
    figures = {"version": str(VERSION), "format": str(plan.wanted), "dtype": str(dtype), "recipes": recipes}
    return figures, lines(plan, recipes)


def lines(plan: Plan, recipes: Mapping[RecipeName, dict[str, Any]]) -> list[str]:
    """A table, and what has to be known to read it."""
    rows: list[list[object]] = []
    for recipe, figures in recipes.items():
        for maker in ("diffusers", "ours"):
            row = figures[maker]
            cells = [_cell(stage, row["seconds"].get(stage)) for stage in STAGES]
            mfu = "-" if row["mfu"] is None else f"{row['mfu']:.2f}"
            planned = figures["planned_gib"] if maker == "ours" else None
            rest = [row["peak_gib"], planned or "-", row["denoise_tflops"], mfu, row["clips_per_hour"]]
            rows.append([f"{recipe}: {maker}", *cells, *rest])
    columns = [f"LTX-{VERSION}, {plan.wanted}", *(f"{stage} s" for stage in STAGES)]
    columns += ["peak GiB", "as planned", "TFLOP/s of denoising", "MFU", "clips/h"]
    compared = ", ".join(f"{recipe} {each['speedup']:.2f}x, {each['psnr_db']} dB" for recipe, each in recipes.items())
    return [
        *table(columns, rows),
        "",
        f"Random weights: speed and memory only, no claim on quality. Of {plan.runs} runs after {plan.warm_ups} to "
        f"warm up, each with a prompt of its own, the median (least - most). {plan.depth.transformer} layers of the "
        f"transformer, {plan.depth.text} of the text encoder, prompts of {plan.depth.tokens} tokens. `all` is a clip "
        "from its prompt to frames on the host; ours encodes while the next clip is made. FLOPs are counted without "
        "the tiling of the VAE. The peak is the card's; on a CPU the process's, since it began. Diffusers' `all` by "
        f"ours, and PSNR between both clips: {compared}."
        + (
            " A thin model on a CPU shows that the same code runs, and no figure of a card."
            if plan.depth != FULL
            else ""
        ),
    ]


def _cell(stage: str, seconds: dict[str, Any] | None) -> str:
    if seconds is None:
        return "-"
    among = f" ({seconds['least']:.2f} - {seconds['most']:.2f})" if stage == "all" else ""
    return f"{seconds['median']:.2f}{among}"
