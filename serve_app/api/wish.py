"""What a request to ``generate`` asks for: its JSON, or the form that says the same in texts and files."""

import json
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from deployments.engine import ModelSpec
from deployments.registry import MODELS
from serve_app.api import attached
from serve_app.api.attached import AttachedFile, Form
from serve_app.api.errors import InvalidRequest
from serve_app.api.schemas import REQUESTS, GenerateOptions, GenerateRequest

BODY: TypeAdapter[Any] = TypeAdapter(GenerateRequest)
_PAIR = re.compile(r"metadata\[(.*)\]", re.DOTALL)
#: Parts of a form that are files, and fields that may hold a data URI.
_FILES = frozenset(item.name for spec in MODELS.values() for item in spec.inputs)
_URLS = frozenset(f"{name}_url" for name in _FILES)


@dataclass(frozen=True)
class Wish:
    """A valid request, and the files that came with it by the name of their input."""

    request: GenerateOptions
    files: Mapping[str, AttachedFile]

    @property
    def asked(self) -> Mapping[str, Any]:
        """All of it as JSON values; of a file what is in it, in whichever way it came."""
        files = {f"{name}_url": f"sha256:{file.sha256}" for name, file in self.files.items()}
        return self.request.model_dump(mode="json", exclude_unset=True) | files


@asynccontextmanager
async def read(connection: Request) -> AsyncIterator[Wish]:
    """What the request asks for. Its files are there until the block ends.

    Raises:
        InvalidRequest, PayloadTooLarge, RequestValidationError
    """
    async with attached.read(connection, _URLS, _FILES) as body:
        if isinstance(body, Form):
            yield _valid(values(body, body.fields.get("model", "")), body.files)
            return
        files = {}
        if isinstance(body, dict):
            files = {name: given for name, given in body.items() if isinstance(given, AttachedFile)}
            body = {name: given for name, given in body.items() if name not in files}
        yield _valid(body, files)


def _valid(value: Any, files: Mapping[str, AttachedFile]) -> Wish:
    if isinstance(value, dict) and not isinstance(value.get("model", ""), str):
        # The message of the union would show what it is instead.
        raise InvalidRequest("model: must be a string.", param="model")
    try:
        request: GenerateOptions = BODY.validate_python(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None
    # A field of each member of the union.
    model: str = request.model  # type: ignore[attr-defined]
    inputs = [item.name for item in MODELS[model].inputs]
    by_input: dict[str, AttachedFile] = {}
    for field, file in files.items():
        name = field.removesuffix("_url") if field in _URLS else field
        if name not in inputs:
            raise InvalidRequest(f"{field}: {model} takes no such file, but {' and '.join(inputs)}.", param=field)
        if name in by_input or getattr(request, f"{name}_url") is not None:
            raise InvalidRequest(f"{name}: is given twice: send the file or {name}_url.", param=name)
        by_input[name] = file
    return Wish(request, by_input)


def values(form: Form, model: str) -> dict[str, Any]:
    """What the texts of a form for this model mean as JSON: what is to be text is text, all else is written as in JSON.
    ``metadata`` may come in pairs, ``metadata[shot]=12``, and a list piece by piece."""
    properties = _properties(model)
    found: dict[str, Any] = {}
    pairs: dict[str, str] = {}
    for name, text in form.fields.items():
        if pair := _PAIR.fullmatch(name):
            pairs[pair[1]] = text
        else:
            # As a page sends a field that was left empty.
            found[name] = None if name in _URLS and not text else _value(text, properties.get(name, {}))
    if pairs and "metadata" in found:
        raise InvalidRequest("metadata: is given twice.", param="metadata")
    for name, texts in form.lists.items():
        if "array" not in _types(properties.get(name, {})):
            raise InvalidRequest(f"{name}: is given twice.", param=name)
        found[name] = [_json(text) for text in texts]
    return found | ({"metadata": pairs} if pairs else {})


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    return text if "string" in _types(schema) or not schema else _json(text)


def _json(text: str) -> Any:
    """What it says, or itself: then the schema says what is wrong with it. In a form, null is not to be there."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None else value


def _types(schema: Mapping[str, Any]) -> Collection[str]:
    return {choice.get("type", "") for choice in _choices(schema)}


def _choices(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        schema = _schemas()[schema["$ref"].rpartition("/")[2]]
    yield schema
    for choice in schema.get("anyOf", ()):
        yield from _choices(choice)


@cache
def _schemas() -> dict[str, Any]:
    """Of all requests, by name, as OpenAPI has them."""
    kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [(request, "validation") for request in REQUESTS.values()]
    _, schema = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    found: dict[str, Any] = schema["$defs"]
    return found


def _properties(model: str) -> Mapping[str, Any]:
    if model not in REQUESTS:
        return {}
    properties: Mapping[str, Any] = _schemas()[REQUESTS[model].__name__]["properties"]
    return properties


def _form(spec: ModelSpec) -> dict[str, Any]:
    """The form's schema: the fields of the JSON, of which none is null, and a file for each input."""
    properties = {name: not_null(schema) for name, schema in _properties(spec.name).items()}
    given = []
    for item in spec.inputs:
        properties[item.name] = {"type": "string", "format": "binary", "description": item.description}
        url = f"{item.name}_url"
        properties[url] = {**properties[url], "anyOf": [*properties[url]["anyOf"], {"const": ""}]}
        linked: dict[str, Any] = {"required": [url]}
        if not item.optional:
            linked["properties"] = {url: {"minLength": 1}}
        given.append({"anyOf": [{"required": [item.name]}, linked]})
    rules = spec.params.model_json_schema().get("allOf", [])
    return {
        "type": "object",
        "title": f"{spec.name.title()}Form",
        "description": f"{spec.description} The fields of the JSON: what is no text there is written as JSON, "
        "`metadata` also as `metadata[name]=value`; an empty URL stands for null.",
        "properties": properties,
        "required": ["model"],
        "additionalProperties": False,
        "allOf": [*rules, {"anyOf": [{"allOf": given}, {"required": ["job_id"]}]}],
    }


def not_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a field that is left out instead."""
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, **({"anyOf": choices} if choices else {})}


def components() -> dict[str, Any]:
    """The schemas of requests, by the names that :data:`REQUEST_BODY` has for them."""
    return _schemas() | {f"{spec.name.title()}Form": _form(spec) for spec in MODELS.values()}


def _one_of(suffix: str) -> dict[str, Any]:
    names = {model: f"#/components/schemas/{model.title()}{suffix}" for model in MODELS}
    if len(names) == 1:
        return {"$ref": next(iter(names.values()))}
    return {
        "oneOf": [{"$ref": name} for name in names.values()],
        "discriminator": {"propertyName": "model", "mapping": names},
    }


REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": _one_of("Request")},
        "multipart/form-data": {"schema": _one_of("Form")},
    },
}
