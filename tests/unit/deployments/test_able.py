"""What a replica says it can make, again and again, and what it takes."""

import pytest

from deployments.able import REPEAT_S, Telling
from deployments.contract import Ability, Lease, Task


class Listener:
    def __init__(self) -> None:
        self.heard: list[Ability] = []
        self.away = False

    async def able(self, ability: Ability) -> None:
        if self.away:
            raise ConnectionError("nobody there")
        self.heard.append(ability)


def ability(**variants: int) -> Ability:
    given = variants or {"": 10}
    return Ability(deployment="ltx2-40gb", model="ltx2", random_weights=False, variants=given)


def task(model: str = "ltx2", **params: object) -> Task:
    lease = Lease(job_id="j", token="t", attempt=1)
    return Task(lease=lease, model=model, params=params, inputs={}, output_url="", lease_s=1, timeout_s=1)


async def reminded(telling: Telling) -> None:
    telling.remind()
    if telling._trying is not None:
        await telling._trying


async def test_it_is_told_at_once_until_it_is_heard_and_then_once_in_a_while() -> None:
    now, listener = [0.0], Listener()
    listener.away = True
    telling = Telling(ability(), listener, lambda: now[0])
    await reminded(telling)
    assert listener.heard == []
    listener.away = False
    for _ in range(3):
        await reminded(telling)
    assert listener.heard == [telling.ability]
    now[0] += REPEAT_S
    await reminded(telling)
    assert len(listener.heard) == 2


@pytest.mark.parametrize(
    ("params", "takes"),
    [
        ({"recipe": "standard", "width": 64, "height": 64, "duration": 1, "fps": 8}, True),
        ({"recipe": "standard", "width": 96, "height": 64, "duration": 1, "fps": 8}, False),
        # A recipe that it has not got.
        ({"recipe": "quality", "width": 64, "height": 64, "duration": 1, "fps": 8}, False),
        # What is wrong in another way the engine says.
        ({"duration": "long"}, True),
    ],
)
def test_it_takes_what_it_can_make(params: dict[str, object], takes: bool) -> None:
    telling = Telling(ability(standard=64 * 64 * (9 + 7)), Listener())
    assert telling.covers(task(**params)) is takes
