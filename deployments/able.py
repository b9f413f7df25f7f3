"""A replica says what can be asked of it: when it starts, and once in a while. And it takes nothing that is beyond it.

Nothing waits for that: until it has come through, the head goes by what is expected of the replica's class.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from pydantic import ValidationError

from deployments.contract import Ability, Task
from deployments.registry import MODELS

log = structlog.get_logger()

#: Seconds after which it is said again: what nobody says any more is believed for two of them.
REPEAT_S = 3600.0
#: Seconds for one try.
TRY_S = 15.0


class Listener(Protocol):
    """The way to the head. Raises when it cannot be reached."""

    async def able(self, ability: Ability) -> None:
        """Deliver it."""


class Telling:
    """For one event loop."""

    def __init__(self, ability: Ability, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self.ability = ability
        self._listener = listener
        self._clock = clock
        self._due_at = clock()
        self._trying: asyncio.Task[None] | None = None

    def remind(self) -> None:
        """Called all the time: tell it if that is due. What fails is tried again the next time."""
        if self._clock() >= self._due_at and (self._trying is None or self._trying.done()):
            self._trying = asyncio.create_task(self.tell())

    async def tell(self) -> None:
        """Now."""
        try:
            async with asyncio.timeout(TRY_S):
                await self._listener.able(self.ability)
        except Exception as error:
            # The head may be restarting.
            log.warning("ability_not_told", error=repr(error))
            return
        self._due_at = self._clock() + REPEAT_S

    def covers(self, task: Task) -> bool:
        """Whether the task is one that the replica can make."""
        spec, found = MODELS[task.model], self.ability
        try:
            params = spec.params.model_validate(task.params)
        except ValidationError:
            # The engine says what is wrong.
            return True
        return spec.size(params) <= found.variants.get(spec.variant(params) or found.default_variant, 0)
