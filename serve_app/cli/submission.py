"""What ``name=value`` on a command line means to a model, by what ``GET /api/v1/models`` says of it."""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.cli.piped import DASH, NothingPiped, piped
from serve_app.client import ApiError, Client, Created, InputInfo, ModelInfo, OnBytes, Unreachable


class InvalidArguments(Exception):
    """The command line does not fit the model; the message says what would."""


def request_video(
    client: Client,
    model: str,
    values: Mapping[str, str],
    without: Collection[str],
    options: Mapping[str, Any],
    on_bytes: OnBytes,
) -> Created:
    """Ask for a video ``without`` some inputs: files are uploaded, URLs passed on, parameters typed by their schema.

    Raises:
        InvalidArguments: a name is unknown or a file cannot be read; nothing was sent.
    """
    with piped() as read:
        files, fields = interpret(client.models(), model, values, without, read)
        job_id: str | None = None
        for kind, path in files.items():
            job_id = client.upload(path, kind, job_id, on_bytes)
    if job_id is None:
        return client.generate(model, **fields, **options)
    try:
        return client.generate(model, job_id=job_id, **fields, **options)
    except ApiError:
        # The job was opened for this request alone; nobody else knows its id.
        with contextlib.suppress(ApiError, Unreachable):
            client.delete(job_id)
        raise


def interpret(
    models: Sequence[ModelInfo],
    name: str,
    values: Mapping[str, str],
    without: Collection[str],
    read: Callable[[int], Path],
) -> tuple[Mapping[str, Path], Mapping[str, Any]]:
    """The files to upload by media kind, and the fields of the ``generate`` request. An optional input is given, or is
    among those to do ``without``. One file may be ``-``, what is piped in: ``read`` is called with the most bytes.

    Raises:
        InvalidArguments
    """
    model = next((each for each in models if each["model"] == name), None)
    if model is None:
        raise InvalidArguments(f"no model {name!r}; there are: {', '.join(each['model'] for each in models)}")
    inputs = {item["name"]: item for item in model["inputs"]}
    params: Mapping[str, Any] = model["params_schema"].get("properties", {})
    files: dict[str, Path] = {}
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    dashes = [key for key, value in values.items() if value == DASH and key not in params]
    if len(dashes) > 1:
        raise InvalidArguments(f"only one input can be {DASH}, what is piped in: {', '.join(dashes)}")
    for key, value in values.items():
        # Who has read the HTTP documentation writes image_url=https://…
        item = inputs.get(key) or inputs.get(key.removesuffix("_url"))
        if item and item["name"] in seen:
            raise InvalidArguments(f"{item['name']} is given twice")
        if item:
            seen.add(item["name"])
        if key in params:
            fields[key] = parse(value, params[key], model["params_schema"].get("$defs", {}))
        elif item is None:
            known = ", ".join([*inputs, *params])
            raise InvalidArguments(f"{name} has no {key!r}; it takes: {known}")
        elif value.startswith(("http://", "https://", "job:")):
            fields[f"{item['name']}_url"] = value
        else:
            kind = _upload_kind(item, inputs)
            if kind in files:
                raise InvalidArguments(f"{key}: only one {kind} can be uploaded per job; give the other as a URL")
            files[kind] = _file(item, value, read)
    for each in without:
        if each not in inputs:
            raise InvalidArguments(f"{name} has no input {each!r} to do without; its inputs: {', '.join(inputs)}")
        if not inputs[each].get("optional"):
            raise InvalidArguments(f"{name} needs {each}")
        if each in seen:
            raise InvalidArguments(f"{each} is given, and left out by --without")
        fields[f"{each}_url"] = None
    for each, item in inputs.items():
        if item.get("optional") and each not in seen and each not in without:
            raise InvalidArguments(f"give {each}=FILE (or a URL); or --without {each} for a video without it")
    return files, fields


def parse(value: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Text where the schema takes text, else JSON. What is neither is left for the API to judge."""
    if "string" in _types(schema, definitions):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _types(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
    named = schema.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        types |= _types(choice, definitions)
    return types


def _upload_kind(item: InputInfo, names: Collection[str]) -> str:
    """As what a file for this input is uploaded, whatever it is: the first kind that the service looks for. What the
    file is, the service sees by its bytes."""
    # A kind that another input is named after is meant for that one.
    kind = next((each for each in item["kinds"] if each == item["name"] or each not in names), None)
    if kind is None:
        raise InvalidArguments(f"{item['name']}: give a URL; an upload would be taken for another input")
    return kind


def _file(item: InputInfo, value: str, read: Callable[[int], Path]) -> Path:
    if value == DASH:
        try:
            return read(item["max_bytes"])
        except NothingPiped as problem:
            raise InvalidArguments(f"{item['name']}={DASH}: {problem}") from None
    path = Path(value).expanduser()
    if not path.is_file():
        raise InvalidArguments(f"{item['name']}: {value} is neither a file nor an http(s) URL nor job:ID")
    return path
