"""The least time that a clip can take, on paper: FLOPs and bytes of each stage against the peaks of cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deployments.ltx2.checkpoint import Checkpoint
from deployments.ltx2.recipes import RECIPE_NAMES, Recipe, RecipeName, canvas, expand
from deployments.ltx2.versions import Version
from tests.benchmarks.full_size import components, facts_of
from tests.benchmarks.report import table
from tests.benchmarks.work import Work, counted


@dataclass(frozen=True, kw_only=True)
class Card:
    """Peaks by NVIDIA's data sheets."""

    name: str
    #: How CUDA names those that have these peaks.
    known_as: str
    #: bfloat16, accumulated in float32, without sparsity.
    tflops: float
    #: Of its memory.
    gb_per_s: float


CARDS = (
    Card(name="H100 SXM", known_as="H100", tflops=989.4, gb_per_s=3350),
    Card(name="A100 80 GB", known_as="A100-SXM4-80GB", tflops=312, gb_per_s=2039),
    Card(name="A100 40 GB", known_as="A100-SXM4-40GB", tflops=312, gb_per_s=1555),
    Card(name="L40S", known_as="L40S", tflops=362, gb_per_s=864),
    Card(name="RTX 4090", known_as="RTX 4090", tflops=165.2, gb_per_s=1008),
)
#: Others that may turn up where one measures.
MORE_CARDS = (Card(name="H200", known_as="H200", tflops=989.4, gb_per_s=4800),)


@dataclass(frozen=True, kw_only=True)
class Format:
    """What is asked for: pixels, frames, and frames per second."""

    width: int
    height: int
    frames: int
    fps: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


USUAL = Format(width=1024, height=576, frames=121, fps=24)


@dataclass(frozen=True)
class Stage:
    """One stage of a clip."""

    work: Work
    #: Bytes of weights, once for each call that reads them: less can't be moved, however much is fused.
    weights: int

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(self.work + other.work, self.weights + other.weights)

    def __mul__(self, times: int) -> "Stage":
        return Stage(self.work * times, self.weights * times)

    def fused_s(self, card: Card) -> float:
        """As if each call were one kernel: bound by arithmetic, or by reading the weights."""
        return max(self.work.flops / card.tflops / 1e12, self.weights / card.gb_per_s / 1e9)

    def eager_s(self, card: Card) -> float:
        """As PyTorch does it without a compiler: every operator reads and writes memory."""
        return self.work.seconds(card.tflops * 1e12, card.gb_per_s * 1e9)


class Model:
    """LTX-2 on ``meta``, in bfloat16; the work of its stages is counted once for each shape."""

    def __init__(self, facts: Checkpoint, modules: Mapping[str, Any]) -> None:
        """``modules`` as :func:`tests.benchmarks.full_size.components` makes them."""
        self.version = facts.version
        self._facts = facts
        self._modules = modules
        self._counted: dict[tuple[Any, ...], Work] = {}

    def stages(self, recipe: RecipeName, wanted: Format) -> dict[str, Stage]:
        """What a clip takes: one new prompt (the negative one is kept), a first frame, all frames, and the sound."""
        how = expand(recipe, self._facts)
        width, height = canvas(recipe, wanted.width, wanted.height)
        channels = self._modules["vae"].config.latent_channels
        latent = ((wanted.frames - 1) // 8 + 1, height // 32, width // 32)
        # 25 latents of sound a second; the last is as long as the picture is.
        sound = round(wanted.frames / wanted.fps * 25)
        stages = {
            "text": self._text() + self._connectors(),
            "first frame": self._encode(how, width, height),
            "denoise": self._denoise(how, latent, sound),
        }
        if len(how.passes) > 1:
            half = (latent[0], latent[1] // 2, latent[2] // 2)
            stages["upsample"] = self._call("latent_upsampler", "__call__", _tensor(1, channels, *half))
        stages["decode"] = self._call("vae", "decode", _tensor(1, channels, *latent)) + self._sound(sound)
        return stages

    def _call(self, name: str, method: str, *args: Any, **kwargs: Any) -> Stage:
        module = self._modules[name]
        shapes = tuple(
            each.shape if isinstance(each, torch.Tensor) else str(each)
            for each in (*args, *kwargs.items(), *kwargs.values())
        )
        key = (name, method, shapes)
        if key not in self._counted:
            self._counted[key] = counted(lambda: getattr(module, method)(*args, **kwargs))
        # Of a VAE only one half is called.
        called = getattr(module, f"{method}r") if method in ("encode", "decode") else module
        return Stage(self._counted[key], sum(each.numel() * each.element_size() for each in called.parameters()))

    def _text(self) -> Stage:
        mask = _tensor(1, 1, self._facts.text_tokens, self._facts.text_tokens, dtype=torch.bool)
        tokens = _tensor(1, self._facts.text_tokens, dtype=torch.long)
        # Masks of its own would be made by what tokens are, which `meta` does not know.
        masks = {"full_attention": mask, "sliding_attention": mask}
        # The logits of all tokens are of no use.
        return self._call(
            "text_encoder",
            "__call__",
            input_ids=tokens,
            attention_mask=masks,
            output_hidden_states=True,
            logits_to_keep=1,
        )

    def _connectors(self) -> Stage:
        width = self._modules["connectors"].config
        embeds = _tensor(1, self._facts.text_tokens, width.caption_channels * width.text_proj_in_factor)
        return self._call("connectors", "__call__", embeds, _tensor(1, self._facts.text_tokens), padding_side="left")

    def _encode(self, how: Recipe, width: int, height: int) -> Stage:
        # Later passes go on from latents.
        divisor = how.passes[0].divisor
        return self._call("vae", "encode", _tensor(1, 3, 1, height // divisor, width // divisor))

    def _denoise(self, how: Recipe, latent: tuple[int, int, int], sound: int) -> Stage:
        whole = Stage(Work(), 0)
        for part in how.passes:
            size = (latent[0], latent[1] // part.divisor, latent[2] // part.divisor)
            # Of guided calls, the second skips attention in some blocks, and in the third picture and sound are apart.
            apart: tuple[dict[str, Any], ...] = (
                {},
                {"spatio_temporal_guidance_blocks": part.arguments["spatio_temporal_guidance_blocks"]},
                {"isolate_modalities": True},
            )
            for items, how_called in zip(part.items, apart, strict=False):
                whole = whole + self._forward(items, size, sound, how_called) * part.steps
        return whole

    def _forward(self, items: int, latent: tuple[int, int, int], sound: int, how_called: dict[str, Any]) -> Stage:
        config = self._modules["transformer"].config
        frames, height, width = latent
        tokens = frames * height * width
        # Since 2.3, the connectors make the width that the transformer has.
        told = config.caption_channels if config.use_prompt_embeddings else config.cross_attention_dim
        heard = config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim
        return self._call(
            "transformer",
            "__call__",
            hidden_states=_tensor(items, tokens, config.in_channels),
            audio_hidden_states=_tensor(items, sound, config.audio_in_channels),
            encoder_hidden_states=_tensor(items, self._facts.text_tokens, told),
            audio_encoder_hidden_states=_tensor(items, self._facts.text_tokens, heard),
            # Each token has its own: the first frame is given.
            timestep=_tensor(items, tokens, dtype=torch.float32),
            audio_timestep=_tensor(items, dtype=torch.float32),
            sigma=_tensor(items, dtype=torch.float32),
            num_frames=frames,
            height=height,
            width=width,
            audio_num_frames=sound,
            use_cross_timestep=self._facts.row.cross_timestep,
            **how_called,
            return_dict=False,
        )

    def _sound(self, latents: int) -> Stage:
        config = self._modules["audio_vae"].config
        # Four lines and four columns of the spectrum a latent; the first has one column.
        sound = _tensor(1, config.latent_channels, latents, config.mel_bins // 4)
        spectrum = _tensor(1, config.output_channels, latents * 4 - 3, config.mel_bins)
        return self._call("audio_vae", "decode", sound, return_dict=False) + self._call("vocoder", "__call__", spectrum)


def full_size(version: Version) -> Model:
    """As published."""
    return Model(facts_of(version), components(version))


def on_paper(model: Model, wanted: Format = USUAL) -> tuple[dict[str, Any], list[str]]:
    """Figures and a table for all recipes: seconds at each card's peaks, fused and eager."""
    version = model.version
    cards = {card.name: {"tflops": card.tflops, "gb_per_s": card.gb_per_s} for card in CARDS}
    recipes: dict[str, dict[str, Any]] = {}
    rows: list[list[object]] = []
    for recipe in RECIPE_NAMES:
        stages = model.stages(recipe, wanted)
        least = {name: [(each.fused_s(card), each.eager_s(card)) for card in CARDS] for name, each in stages.items()}
        whole = sum(stages.values(), Stage(Work(), 0))
        # One stage after the other.
        least["all"] = [
            (sum(fused), sum(eager))
            for fused, eager in (zip(*each, strict=True) for each in zip(*least.values(), strict=True))
        ]
        recipes[recipe] = {}
        for name, stage in {**stages, "all": whole}.items():
            recipes[recipe][name] = {
                "tflop": round(stage.work.flops / 1e12, 2),
                "attention_tflop": round(stage.work.attention / 1e12, 2),
                "weights_gb": round(stage.weights / 1e9, 2),
                "moved_gb": round(stage.work.moved / 1e9, 1),
                "seconds": {card.name: each for card, each in zip(CARDS, least[name], strict=True)},
            }
            bytes_moved = f"{stage.weights / 1e9:,.1f}", f"{stage.work.moved / 1e9:,.0f}"
            seconds = (f"{fused:.2f} - {eager:.2f}" for fused, eager in least[name])
            rows.append([f"{recipe}: {name}", f"{stage.work.flops / 1e12:,.1f}", *bytes_moved, *seconds])
    columns = [f"LTX-{version}, {wanted}", "TFLOP", "GB of weights", "GB moved", *cards]
    figures = {"version": str(version), "format": str(wanted), "cards": cards, "recipes": recipes}
    return figures, [*table(columns, rows), "", *_NOTE]


_NOTE = (
    "Seconds at the card's peaks of bfloat16 and of memory, with all weights on the card (which 40 GB and less can't "
    "hold): first as if each call were one kernel, then with each operator a kernel of its own, as PyTorch has it "
    "without a compiler. Attention keeps its scores on the chip; the VAE is not tiled.",
)


def _tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def card_of(name: str) -> Card | None:
    """The card that CUDA names so."""
    return next((card for card in (*CARDS, *MORE_CARDS) if card.known_as in name), None)
