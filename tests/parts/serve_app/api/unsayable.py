"""What JSON Schema cannot say of our requests. schemathesis loads this: it would take such a request for a valid one.

Everything else is in the schema, so that a client's generator knows it as well.
"""

from typing import Any

import schemathesis

#: As ``LTX2Params`` has it: five seconds at 1920x1088 and 24 fps.
MOST_PIXELS = 1920 * 1088 * 121


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """A product of fields, and an order of numbers in a list."""
    return not isinstance(body, dict) or (_fits(body) and _has_a_box(body.get("face_box")))


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
