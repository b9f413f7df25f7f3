"""What a schema cannot say of our requests. schemathesis loads this: it would take such a request for a valid one.

Everything else is in the schema, so that a client's generator knows it as well.
"""

import re
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis.generation.meta import CoverageScenario

from deployments.engine import InputSpec
from deployments.registry import MODELS
from serve_app.api import idempotency

FORM = "multipart/form-data"

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
    """Of forms that have files this tool can neither read the examples, which ``test_examples.py`` sends, nor tell
    whether one keeps to a rule between fields, for which :func:`_mend_form` sees."""
    schemas = raw_schema["components"]["schemas"]
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            form = operation.get("requestBody", {}).get("content", {}).get(FORM, {})
            form.pop("examples", None)
            schema = form.get("schema", {})
            for each in schema.get("oneOf", [schema]):
                named = schemas[each["$ref"].rpartition("/")[2]] if "$ref" in each else each
                named.pop("allOf", None)


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """That each request has an idempotency key of its own. One that is no key stays none."""
    if case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        if case.media_type == FORM and case.operation.path == "/api/v1/generate":
            mended = dict(case.body)
            _mend_form(mended)
            # What is set is looked at anew, and a form with files is then held for a wrong one.
            if mended != case.body:
                case.body = mended
        elif not _has_a_box(case.body.get("face_box")):
            # Examples are put together without a look at :func:`filter_body`.
            del case.body["face_box"]
    asks = None if case.meta is None else getattr(case.meta.phase.data, "scenario", None)
    if asks is CoverageScenario.MISSING_PARAMETER:
        # Headers that are touched get the one back that is to be missing.
        return
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str):
        case.headers["Idempotency-Key"] = _of_its_own(key)


def _of_its_own(key: str) -> str:
    """One that no request had before, bare or quoted as it is, and no longer than it may be."""
    try:
        idempotency.parse(key)
    except ValueError:
        return key
    most = idempotency.MAX_LENGTH - len(f"-{uuid4()}")
    bare = key.strip(" \t")
    if not bare.startswith('"'):
        return f"{bare[:most]}-{uuid4()}"
    return f'{bare[:-1]}-{uuid4()}"' if len(bare) - 2 <= most else f'"{uuid4()}"'


def _mend_form(form: dict[str, Any]) -> None:
    """Makes it keep to the rules between fields that :func:`before_load_schema` takes out. A form with files that was
    touched is no longer held for a valid one, so it names a job that is not there besides: that is refused, and may be
    for either."""
    inputs = MODELS[form["model"]].inputs
    twice = [item.name for item in inputs if item.name in form and f"{item.name}_url" in form]
    missing = [item.name for item in inputs if item.name not in form and not _said(form, item)]
    half = ("width" in form) != ("height" in form)
    face = ("face_box" in form and "face_index" in form) or not _has_a_box(form.get("face_box"))
    if twice or missing or half or face:
        wrong = [f"{name}_url" for name in twice]
        wrong += ["width", "height"] if half else []
        wrong += ["face_box"] if face else []
        for name in wrong:
            form.pop(name, None)
        form["job_id"] = str(uuid4())


def _said(form: dict[str, Any], item: InputSpec) -> bool:
    """Whether it says where this input is; an empty URL says that it is left out."""
    url = form.get(f"{item.name}_url")
    return url is not None and (item.optional or url != "")


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
