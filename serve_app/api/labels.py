"""A client's own pairs of strings on a job: ``metadata``."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import Field, TypeAdapter, ValidationError, WithJsonSchema

from serve_app.api.errors import InvalidRequest

MAX_PAIRS, MAX_NAME, MAX_VALUE = 16, 64, 512

#: Nothing with a NUL, which PostgreSQL cannot store.
_PLAIN = r"^[^\x00]*$"
_NAME = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=_PLAIN)]
_VALUE = Annotated[str, Field(max_length=MAX_VALUE, pattern=_PLAIN)]
#: What pydantic would say of the pattern of a name leaves all others open.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "maxProperties": MAX_PAIRS,
    "propertyNames": {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "pattern": _PLAIN},
    "additionalProperties": {"type": "string", "maxLength": MAX_VALUE, "pattern": _PLAIN},
}
Metadata = Annotated[dict[_NAME, _VALUE], Field(max_length=MAX_PAIRS), WithJsonSchema(_SCHEMA)]

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)
_PARAMETER = re.compile(r"metadata\[(.*)\]", re.DOTALL)

#: FastAPI has no word for it.
PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Only jobs that have all these pairs: `?metadata[shot]=12&metadata[scene]=3`.",
    "schema": _SCHEMA,
}


async def _wanted(request: Request) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata"):
            continue
        pair = _PARAMETER.fullmatch(name)
        if pair is None:
            raise InvalidRequest(f"{name}: write it as metadata[name]=value.", param="metadata")
        if pair[1] in found:
            raise InvalidRequest(f"{name}: is given twice.", param="metadata")
        found[pair[1]] = value
    try:
        return _METADATA.validate_python(found)
    except ValidationError as error:
        raise InvalidRequest(f"metadata: {error.errors()[0]['msg']}.", param="metadata") from None


#: Of the query: pairs that a job has to have.
MetadataWanted = Annotated[Mapping[str, str], Depends(_wanted)]
