"""A network on several cores of a CPU: one part of the batch to each, instead of each layer on all of them.

A layer split between threads waits for the slowest of them, and OpenMP waits busily: where ffmpeg wants a core as well,
half of the work would be waiting.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


class Cores:
    """As many threads as torch would use for a layer, each of which uses itself alone; none for a card."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="core")
        if self.count == 1:
            return
        met = Barrier(self.count)

        def alone(_: int) -> None:
            # A thread's first look sets it to what the process has, whatever it was set to before.
            torch.get_num_threads()
            torch.set_num_threads(1)
            # One task a thread: none ends before each has begun.
            met.wait()

        list(self._threads.map(alone, range(self.count)))
        # What a thread sets is also what later threads of this process begin with.
        torch.set_num_threads(self.count)

    def map(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """What ``work`` makes of each part, in order. Raises what it raises."""
        if self.count == 1 or len(parts) == 1:
            return [work(part) for part in parts]
        return list(self._threads.map(work, parts))
