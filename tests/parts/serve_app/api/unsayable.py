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
    """A product of fields, and an order of numbers in a list."""
    return not isinstance(body, dict) or (_fits(body) and _has_a_box(body.get("face_box")))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """A cursor that is no video's is answered with 400, as in OpenAI's protocol; this tool knows of none that is."""
    return case.operation.path != "/v1/videos" or "after" not in (case.query or {})


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """This tool has no way with examples of forms that have files. ``test_examples.py`` sends them."""
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).pop("examples", None)


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """That each request has an idempotency key of its own. One that is no key stays none."""
    if case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        _mend(case.body)
    asks = None if case.meta is None else getattr(case.meta.phase.data, "scenario", None)
    if asks is CoverageScenario.MISSING_PARAMETER:
        # Headers that are touched get the one back that is to be missing.
        return
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and len(key) <= 200 and re.fullmatch(r"[!#-+\--~]+", key):
        case.headers["Idempotency-Key"] = f"{key}-{uuid4()}"


def _mend(form: dict[str, Any]) -> None:
    """Examples are put together without a look at :func:`filter_body`, or at what rules out what."""
    if not _has_a_box(form.get("face_box")):
        del form["face_box"]
    for name in ("image", "video", "audio"):
        if name in form:
            form.pop(f"{name}_url", None)


def _fits(body: dict[str, Any]) -> bool:
    body = _by_its_names(body)
    defaults = {"width": 1024, "height": 576, "duration": 5, "fps": 24}
    numbers = [body.get(name) or default for name, default in defaults.items()]
    if not all(isinstance(number, int | float) for number in numbers):
        return True
    width, height, duration, fps = numbers
    if "size" in body and not all(64 <= side <= 1920 and side % 2 == 0 for side in (width, height)):
        return False
    # As made.
    width, height = (-(-side // 32) * 32 for side in (width, height))
    return width * height * (duration * fps // 8 * 8 + 1) <= MOST_PIXELS


def _by_its_names(body: dict[str, Any]) -> dict[str, Any]:
    """What OpenAI's protocol says by other words."""
    size = re.fullmatch(r"([1-9][0-9]{1,3})x([1-9][0-9]{1,3})", str(body.get("size")))
    seconds = body.get("seconds")
    length = int(seconds) if isinstance(seconds, int | str) and str(seconds).isdecimal() else None
    sides = {} if size is None else {"width": int(size[1]), "height": int(size[2])}
    return {**body, **({} if length is None else {"duration": length}), **sides}


def _has_a_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        return True
    top, bottom, left, right = box
    return bottom - top >= 8 and right - left >= 8
