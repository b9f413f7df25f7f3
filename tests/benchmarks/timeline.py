"""How long each stage of a clip takes, from the calls of the models that it is made of. The same for any pipeline."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

#: Which calls belong to which stage: a component's name and its method.
_CALLS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "text": (("text_encoder", "forward"), ("connectors", "forward")),
    "first frame": (("vae", "encode"),),
    "denoise": (("transformer", "forward"),),
    "upsample": (("latent_upsampler", "forward"),),
    "decode": (("vae", "decode"), ("audio_vae", "decode"), ("vocoder", "forward")),
}


class Timeline:
    """Watches the components of a pipeline. On CUDA by events in its stream, so that nothing waits for anything."""

    def __init__(self, modules: Mapping[str, Any], device: torch.device) -> None:
        self._modules = modules
        self._cuda = device.type == "cuda"
        self._marks: dict[str, list[tuple[Any, Any]]] = {}
        self._whole = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure what the body makes, anew."""
        self._marks = defaultdict(list)
        patched = []
        for stage, calls in _CALLS.items():
            for name, method in calls:
                module = self._modules[name]
                setattr(module, method, self._timed(stage, getattr(module, method)))
                patched.append((module, method))
        try:
            self._settle()
            began = time.perf_counter()
            yield
            self._settle()
            self._whole = time.perf_counter() - began
        finally:
            for module, method in patched:
                # The class's own shows again.
                delattr(module, method)

    @property
    def seconds(self) -> dict[str, float]:
        """By stage; ``rest`` is what no model was called for, and ``all`` what passed."""
        stages = {stage: sum(map(self._between, marks)) for stage, marks in self._marks.items()}
        return {**stages, "rest": self._whole - sum(stages.values()), "all": self._whole}

    @property
    def calls(self) -> dict[str, int]:
        """By stage."""
        return {stage: len(marks) for stage, marks in self._marks.items()}

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._mark()
            made = call(*args, **kwargs)
            self._marks[stage].append((began, self._mark()))
            return made

        return timed

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, marks: tuple[Any, Any]) -> float:
        began, ended = marks
        return float(began.elapsed_time(ended)) / 1000 if self._cuda else float(ended - began)

    def _settle(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
