"""What a schema cannot say of our requests. schemathesis loads this: it would take such a request for a valid one.

Everything else is in the schema, so that a client's generator knows it as well.
"""

import re
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis.generation.meta import CoverageScenario

#: As ``LTX2Params`` has it: five seconds at 1920x1088 and 24 fps.
MOST_PIXELS = 1920 * 1088 * 121


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """A product of fields, an order of numbers in a list, and that no input is given twice: of the words for that, this
    tool knows none that go with files."""
    return not isinstance(body, dict) or (_fits(body) and _has_a_box(body.get("face_box")) and _once(body))


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """That each request has an idempotency key of its own. One that is no key stays none."""
    asks = None if case.meta is None else getattr(case.meta.phase.data, "scenario", None)
    if asks is CoverageScenario.MISSING_PARAMETER:
        # Headers that are touched get the one back that is to be missing.
        return
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and len(key) <= 200 and re.fullmatch(r"[!#-+\--~]+", key):
        case.headers["Idempotency-Key"] = f"{key}-{uuid4()}"


def _fits(body: dict[str, Any]) -> bool:
    defaults = {"width": 1024, "height": 576, "duration": 5, "fps": 24}
    numbers = [body.get(name) or default for name, default in defaults.items()]
    if not all(isinstance(number, int | float) for number in numbers):
        return True
    width, height, duration, fps = numbers
    return width * height * (duration * fps // 8 * 8 + 1) <= MOST_PIXELS


def _has_a_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        return True
    top, bottom, left, right = box
    return bottom - top >= 8 and right - left >= 8


def _once(body: dict[str, Any]) -> bool:
    return not any(name in body and f"{name}_url" in body for name in ("image", "video", "audio"))
