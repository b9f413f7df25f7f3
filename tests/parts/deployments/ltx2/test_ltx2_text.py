import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2ImageToVideoPipeline, LTXImageToVideoPipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deployments.ltx2.pipeline import Pipeline, Shot, to_uint8
from deployments.ltx2.recipes import RecipeName, expand
from deployments.ltx2.schedule import scheduler_of
from deployments.ltx2.spec import DEFAULT_NEGATIVE_PROMPT
from deployments.ltx2.text import Text
from deployments.ltx2.versions import Version
from tests.parts.deployments.ltx2.conftest import Take

CPU = torch.device("cpu")
PipelineOf = Callable[[Version], Pipeline]
MakeShot = Callable[..., Shot]


def no_step(stage: str, fraction: float) -> None:
    pass


@pytest.fixture
def calls(pipeline_of: PipelineOf) -> Any:
    """How often the text encoder of LTX-2.3 was called."""
    seen: list[None] = []
    handle = pipeline_of(Version.LTX_2_3)._pipe.text_encoder.register_forward_hook(lambda *_: seen.append(None))
    yield seen
    handle.remove()


def text_of(pipeline: Pipeline, **options: Any) -> Text:
    return Text(pipeline._pipe, pipeline.checkpoint.text_tokens, **options)


def test_the_encoder_is_called_once_for_a_new_prompt_and_never_for_one_that_came_before(
    own_pipeline_of: PipelineOf, shot: MakeShot
) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_3)
    seen: list[str] = []
    for name in ("text_encoder", "connectors"):
        getattr(pipeline._pipe, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    for recipe, prompt, times in (
        ("fast", "one", 1),
        # Whatever recipe, seed or size: a prompt is one text. Blanks around it are none of it.
        ("standard", " one ", 1),
        ("fast", "two", 2),
        ("fast", "one", 2),
    ):
        pipeline.render(shot(recipe=recipe, prompt=prompt), no_step)
        assert seen == ["text_encoder", "connectors"] * times


def test_negative_prompts_are_read_by_guided_recipes_only_and_the_usual_one_is_kept_for_ever(
    pipeline_of: PipelineOf, calls: list[None]
) -> None:
    text = text_of(pipeline_of(Version.LTX_2_3), always=(DEFAULT_NEGATIVE_PROMPT,), limit_bytes=0)
    unguided = text.arguments("one", None, CPU)
    assert unguided["negative_prompt_embeds"] is unguided["negative_prompt_attention_mask"] is None
    assert len(calls) == 1
    guided = text.arguments("one", DEFAULT_NEGATIVE_PROMPT, CPU)
    assert guided["negative_prompt_embeds"].shape == guided["prompt_embeds"].shape
    # There is room for nothing: "one" is encoded each time.
    assert len(calls) == 3
    text.arguments("two", DEFAULT_NEGATIVE_PROMPT, CPU)
    assert len(calls) == 4


def test_the_least_recently_used_prompt_leaves_first(pipeline_of: PipelineOf, calls: list[None]) -> None:
    pipeline = pipeline_of(Version.LTX_2_3)
    one = text_of(pipeline).arguments("one", None, CPU)
    size = sum(tensor.nbytes for tensor in one.values() if tensor is not None)
    text = text_of(pipeline, limit_bytes=2 * size)
    calls.clear()
    for prompt, times in (("one", 1), ("two", 2), ("one", 2), ("three", 3), ("one", 3), ("two", 4)):
        text.arguments(prompt, None, CPU)
        assert len(calls) == times, prompt


@pytest.mark.parametrize("version", Version)
def test_it_keeps_what_denoising_reads_and_no_more(version: Version, pipeline_of: PipelineOf) -> None:
    """Not the hidden states of all layers, which at full size are 30 times as much."""
    pipeline = pipeline_of(version)
    pipe, tokens = pipeline._pipe, pipeline.checkpoint.text_tokens
    kept = text_of(pipeline).arguments("one", None, CPU)
    embeds, mask, *_ = pipe.encode_prompt("one", do_classifier_free_guidance=False, max_sequence_length=tokens)
    if version is not Version.LTX_VIDEO:
        video, audio, mask = pipe.connectors(embeds, mask)
        embeds = torch.cat([video, audio], dim=-1)
    assert torch.equal(kept["prompt_embeds"], embeds)
    assert torch.equal(kept["prompt_attention_mask"], mask)
    assert kept["prompt_embeds"].untyped_storage().nbytes() == embeds.nbytes


@pytest.mark.parametrize(
    ("version", "recipe"),
    [(Version.LTX_2_0, "standard"), (Version.LTX_2_3, "quality"), (Version.LTX_VIDEO, "quality")],
)
def test_clips_are_those_of_the_library_with_its_own_text(
    version: Version,
    recipe: RecipeName,
    folder_of: Callable[[Version], Path],
    pipeline_of: PipelineOf,
    takes_of: Callable[[Version], dict[RecipeName, Take]],
    shot: MakeShot,
) -> None:
    family = LTXImageToVideoPipeline if version is Version.LTX_VIDEO else LTX2ImageToVideoPipeline
    pipe = family.from_pretrained(folder_of(version), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    (part,) = expand(recipe, pipeline_of(version).checkpoint).passes
    pipe.scheduler = scheduler_of(part)
    asked = shot(recipe=recipe)
    torch.manual_seed(asked.seed)
    output = pipe(
        **{**part.arguments, "prompt": asked.prompt, "negative_prompt": asked.negative_prompt},
        image=asked.image,
        width=asked.width,
        height=asked.height,
        num_frames=asked.frames,
        frame_rate=float(asked.fps),
        generator=torch.Generator().manual_seed(asked.seed),
    )
    clip = takes_of(version)[recipe].clip
    assert np.array_equal(clip.frames, to_uint8(output.frames[0]).numpy())
    if clip.audio is not None:
        assert np.array_equal(clip.audio, output.audio[0].numpy())


def test_a_clip_is_the_same_with_a_text_that_was_kept_and_one_that_was_not(
    pipeline_of: PipelineOf,
    shot: MakeShot,
    takes_of: Callable[[Version], dict[RecipeName, Take]],
    calls: list[None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, first = pipeline_of(Version.LTX_2_3), takes_of(Version.LTX_2_3)["fast"].clip
    for text, times in ((text_of(pipeline, limit_bytes=0), 1), (pipeline._text, 0)):
        calls.clear()
        monkeypatch.setattr(pipeline, "_text", text)
        clip = pipeline.render(shot(recipe="fast"), no_step)
        assert len(calls) == times
        assert np.array_equal(clip.frames, first.frames)
        assert first.audio is not None
        assert clip.audio is not None
        assert np.array_equal(clip.audio, first.audio)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        size = storage.nbytes()
        self._known.add(storage)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.bytes -= size


def test_a_prompt_that_was_never_seen_needs_no_more_memory_than_one_that_was(
    own_pipeline_of: PipelineOf, shot: MakeShot
) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_3)
    pipeline.render(shot(recipe="fast"), no_step)
    peaks = []
    for prompt in ("a quiet street at dawn", "never seen"):
        with Live() as live:
            pipeline.render(shot(recipe="fast", prompt=prompt), no_step)
        peaks.append(live.peak)
    seen, unseen = peaks
    # Of a new prompt stays what is kept, and that is in host memory.
    kept = max(each.size for each in pipeline._text._kept.values())
    assert unseen <= seen + kept


def test_what_the_encoder_made_is_gone_before_denoising(own_pipeline_of: PipelineOf, shot: MakeShot) -> None:
    pipeline = own_pipeline_of(Version.LTX_2_3)
    pipe = pipeline._pipe
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def after_encoder(module: Any, args: Any, output: Any) -> None:
        made.extend(weakref.ref(state) for state in output.hidden_states)
        # Its logits are of one token only: nobody reads them.
        assert output.logits.shape[1] == 1

    def before_connectors(module: Any, args: Any, kwargs: Any) -> None:
        made.append(weakref.ref(args[0]))

    def before_transformer(module: Any, args: Any) -> None:
        alive.append(sum(each() is not None for each in made))

    pipe.text_encoder.register_forward_hook(after_encoder)
    pipe.connectors.register_forward_pre_hook(before_connectors, with_kwargs=True)
    pipe.transformer.register_forward_pre_hook(before_transformer)
    pipeline.render(shot(recipe="fast"), no_step)
    assert len(made) == 4
    assert alive == [0] * 11
