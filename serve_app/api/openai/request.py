"""What a request asks for: in the protocol's words, and beside them in those of ``generate`` that it has none for."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from deployments.engine import ModelSpec
from deployments.registry import MODELS
from serve_app.api import attached
from serve_app.api.attached import AttachedFile, Form
from serve_app.api.errors import InvalidRequest, ModelNotFound
from serve_app.api.openai.video import AUTO
from serve_app.api.schemas import REQUESTS
from serve_app.api.wish import Wish, not_null, values

#: Parameters that the protocol has words for.
_SAID = {"prompt", "duration", "width", "height"}


def _fits(spec: ModelSpec) -> bool:
    """Whether the protocol can ask for it: a prompt, a length and a size, and one picture or none."""
    inputs = [(item.kinds, item.optional) for item in spec.inputs]
    return spec.params.model_fields.keys() >= _SAID and inputs == [(("image",), True)]


#: What can be asked for here; the first is meant where none is named.
PROMPTED: Mapping[str, ModelSpec] = {name: spec for name, spec in MODELS.items() if _fits(spec)}
DEFAULT_MODEL = next(iter(PROMPTED))

_FORM, _JSON = "multipart/form-data", "application/json"
#: The field of the picture, and its member.
_REFERENCE, _URL = "input_reference", "image_url"
_MEMBER = re.compile(rf"{_REFERENCE}\[(.*)\]", re.DOTALL)
#: By what ``generate`` calls it, the field here that says it.
_NAMES = {"duration": "seconds", "width": "size", "height": "size"}
_SECONDS = re.compile(r"[0-9]{1,4}", re.ASCII)
_SIZE = re.compile(r"([1-9][0-9]{1,3})x([1-9][0-9]{1,3})", re.ASCII)


@asynccontextmanager
async def read(request: Request) -> AsyncIterator[Wish]:
    """What the request asks for, in the words of ``generate``. Its files are there until the block ends.

    Raises:
        ModelNotFound, InvalidRequest, PayloadTooLarge, RequestValidationError
    """
    async with attached.read(request, (_REFERENCE, f"{_REFERENCE}[{_URL}]")) as body:
        if isinstance(body, Form):
            texts = values(body, body.fields.get("model", DEFAULT_MODEL))
            yield _wish(_folded({**texts, **body.files}))
        elif isinstance(body, dict):
            yield _wish(body)
        else:
            raise InvalidRequest("The body must be a JSON object.")


def _folded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the members of the picture's field together, as JSON has them."""
    members = {found[1]: name for name in given if (found := _MEMBER.fullmatch(name))}
    if not members:
        return given
    if _REFERENCE in given:
        raise InvalidRequest(f"{_REFERENCE}: is given twice.", param=_REFERENCE)
    rest = {name: value for name, value in given.items() if name not in members.values()}
    return {**rest, _REFERENCE: {member: given[name] for member, name in members.items()}}


def _wish(given: Mapping[str, Any]) -> Wish:
    spec = _model(given.get("model"))
    picture = _picture(spec)
    for name in given:
        if name in _NAMES or name in (f"{picture}_url", "job_id"):
            instead = f"say `{_NAMES.get(name, _REFERENCE)}`"
            raise InvalidRequest(f"{name}: not a field here; {instead}.", param=name)
    if given.get("prompt") is None:
        raise InvalidRequest("prompt: required.", param="prompt")
    asked = {name: value for name, value in given.items() if name not in ("seconds", "size", _REFERENCE)}
    reference = _reference(given.get(_REFERENCE))
    files = {picture: reference} if isinstance(reference, AttachedFile) else {}
    asked |= {"model": spec.name, f"{picture}_url": None if files else reference}
    if (seconds := given.get("seconds")) is not None:
        asked["duration"] = _seconds(seconds)
    if (size := given.get("size")) not in (None, AUTO):
        asked["width"], asked["height"] = _size(size)
    try:
        return Wish(REQUESTS[spec.name].model_validate(asked), files)
    except ValidationError as error:
        names = {**_NAMES, f"{picture}_url": _REFERENCE}
        faults = [
            {**fault, "loc": ("body", *(names.get(str(part), part) for part in fault["loc"]))}
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise RequestValidationError(faults) from None


def _picture(spec: ModelSpec) -> str:
    (item,) = spec.inputs
    return item.name


def _model(name: object) -> ModelSpec:
    if name is None:
        return PROMPTED[DEFAULT_MODEL]
    if not isinstance(name, str):
        raise InvalidRequest("model: must be a string.", param="model")
    return model_of(name)


def model_of(name: str) -> ModelSpec:
    """The model of this name. Raises ModelNotFound."""
    if name not in PROMPTED:
        found = ", ".join(f"`{each}`" for each in PROMPTED)
        raise ModelNotFound(f"The model `{name[:100]}` does not exist. There is {found}.", param="model")
    return PROMPTED[name]


def _seconds(given: object) -> int:
    if isinstance(given, str) and _SECONDS.fullmatch(given):
        return int(given)
    if isinstance(given, int | float) and not isinstance(given, bool) and given == given // 1:
        return int(given)
    raise InvalidRequest("seconds: must be a whole number, or one as a string.", param="seconds")


def _size(given: object) -> tuple[int, int]:
    found = _SIZE.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise InvalidRequest("size: must be width x height in pixels, e.g. `1280x720`.", param="size")
    return int(found[1]), int(found[2])


def _reference(given: object) -> object:
    """The picture, or where it is; None: there is none."""
    if not isinstance(given, Mapping):
        return given
    if given.get("file_id") is not None:
        text = f"{_REFERENCE}.file_id: no files are kept here. Send the picture itself, or where it is as `{_URL}`."
        raise InvalidRequest(text, param=_REFERENCE)
    for name in given:
        if name not in (_URL, "file_id"):
            raise InvalidRequest(f"{_REFERENCE}.{name}: unknown; there is `{_URL}`.", param=_REFERENCE)
    if given.get(_URL) is None:
        raise InvalidRequest(f"{_REFERENCE}.{_URL}: required.", param=_REFERENCE)
    return given[_URL]


def _schema(spec: ModelSpec) -> dict[str, Any]:
    """Of a JSON body that asks for this model."""
    fields = REQUESTS[spec.name].model_json_schema()["properties"]
    picture = f"{_picture(spec)}_url"
    kept = {name: field for name, field in fields.items() if name not in (*_NAMES, picture, "job_id")}
    default = {"default": spec.name} if spec.name == DEFAULT_MODEL else {}
    least, most = fields["duration"]["minimum"], fields["duration"]["maximum"]
    lengths = [
        {"type": "integer", "minimum": least, "maximum": most},
        {"type": "string", "enum": [str(number) for number in range(least, most + 1)]},
    ]
    where = not_null(fields[picture])
    url = {"anyOf": where["anyOf"]} if "anyOf" in where else where
    member = {"type": "object", "required": [_URL], "properties": {_URL: url}, "additionalProperties": False}
    null = {"type": "null"}
    said = {
        "model": {"anyOf": [kept["model"], null], **default} if default else kept["model"],
        "prompt": {name: value for name, value in kept["prompt"].items() if name != "default"},
        "seconds": {"anyOf": [*lengths, null], "description": fields["duration"]["description"]},
        "size": {
            "anyOf": [{"type": "string", "pattern": f"^(?:{_SIZE.pattern}|{AUTO})$"}, null],
            "description": "Width x height in pixels, even and within the model's limits. `auto`: the model's own.",
            "examples": ["1280x720", "720x1280"],
        },
        _REFERENCE: {"anyOf": [url, member, null], "description": "The first frame: its URL or a data URL of it."},
    }
    return {
        "type": "object",
        "title": f"{spec.name.title()}Video",
        "required": ["prompt", *([] if default else ["model"])],
        "properties": {**kept, **said},
        "additionalProperties": False,
    }


def _form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a form, where the picture may come along and nothing is null."""
    properties = {name: not_null(field) for name, field in schema["properties"].items()}
    properties[_REFERENCE] = {"type": "string", "format": "binary", "description": "The first frame, or its URL."}
    return {**schema, "title": f"{schema['title']}Form", "properties": properties}


def _any(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def request_body() -> dict[str, Any]:
    """What OpenAPI says of it."""
    schemas = [_schema(spec) for spec in PROMPTED.values()]
    content = {_JSON: schemas, _FORM: [_form(schema) for schema in schemas]}
    return {"required": True, "content": {kind: {"schema": _any(each)} for kind, each in content.items()}}
