"""Prompts as the transformer reads them: the text encoder and the connectors behind a cache.

What the encoder makes of a prompt is 385 MB at full size, what the connectors make of that is 12.6 MB and all that
denoising reads. Only the latter is kept, in host memory, so a prompt that was never seen costs the device nothing that
lasts. The pipelines have no argument for it: they get it as their embeddings, and :func:`apart` instead of connectors.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

#: Bytes of host memory for prompts: about 40 at full size.
LIMIT_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Encoded:
    """One prompt, on the host."""

    #: Shape (1, tokens, channels): for LTX-2 what picture and sound are told, side by side.
    embeds: torch.Tensor
    #: Shape (1, tokens), 1 where a token counts.
    mask: torch.Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return self.embeds.nbytes + self.mask.nbytes


class Text:
    """The text side of ``pipe``, which keeps what it has encoded, the least recently used leaving first."""

    def __init__(self, pipe: Any, tokens: int, *, always: Iterable[str] = (), limit_bytes: int = LIMIT_BYTES) -> None:
        """Prompts are padded or cut to ``tokens``. Those in ``always`` are never dropped and count for nothing."""
        self._pipe = pipe
        self._tokens = tokens
        self._limit_bytes = limit_bytes
        self._always = frozenset(map(str.strip, always))
        self._pinned: dict[str, Encoded] = {}
        self._kept: OrderedDict[str, Encoded] = OrderedDict()

    def arguments(self, prompt: str, negative_prompt: str | None, device: torch.device) -> dict[str, Any]:
        """Arguments of the pipeline call in place of the prompts, on ``device``. No negative prompt: no guidance."""
        return {
            **self._named("", prompt, device),
            **self._named("negative_", negative_prompt, device),
        }

    def _named(self, prefix: str, prompt: str | None, device: torch.device) -> dict[str, Any]:
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_attention_mask"
        if prompt is None:
            return dict.fromkeys(names)
        encoded = self._of(prompt, device)
        return dict(zip(names, (encoded.embeds.to(device), encoded.mask.to(device)), strict=True))

    def _of(self, prompt: str, device: torch.device) -> Encoded:
        # The pipelines strip it, too.
        prompt = prompt.strip()
        if prompt in self._always:
            if prompt not in self._pinned:
                self._pinned[prompt] = self._encode(prompt, device)
            return self._pinned[prompt]
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        encoded = self._kept[prompt] = self._encode(prompt, device)
        while sum(each.size for each in self._kept.values()) > self._limit_bytes:
            self._kept.popitem(last=False)
        return encoded

    def _encode(self, prompt: str, device: torch.device) -> Encoded:
        pipe = self._pipe
        connected = hasattr(pipe, "connectors")
        with contextlib.ExitStack() as hooked:
            if connected:
                handle = pipe.text_encoder.register_forward_pre_hook(_without_logits, with_kwargs=True)
                hooked.callback(handle.remove)
            embeds, mask, *_ = pipe.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                max_sequence_length=self._tokens,
                # Where it computes, wherever its weights are until then.
                device=device,
            )
        if connected:
            video, audio, mask = pipe.connectors(
                embeds, mask.to(embeds.device), padding_side=pipe.tokenizer.padding_side
            )
            embeds = torch.cat([video, audio], dim=-1)
        return Encoded(embeds.cpu(), mask.cpu())


def _without_logits(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Only hidden states are read; logits of all tokens would be half a gigabyte at full size."""
    return args, {**kwargs, "logits_to_keep": 1}


def apart(video_channels: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What stands in for the connectors: takes embeddings apart again into what picture and sound are told."""

    def connectors(
        embeds: torch.Tensor, mask: torch.Tensor, padding_side: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return embeds[..., :video_channels].contiguous(), embeds[..., video_channels:].contiguous(), mask

    return connectors
