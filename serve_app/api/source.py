"""Where a request says that an input is: the type of its ``<input>_url`` fields."""

import re
from typing import Annotated, Any

from pydantic import HttpUrl, PlainSerializer, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator

from serve_app.api.examples import JOB_ID
from serve_app.jobs.job import OF_JOB

#: What an id of a job looks like.
UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

_URL: dict[str, Any] = {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}
_TOKEN = "[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105 - of a media type
_ESCAPED = "(?:[!-$&-~]|%[0-9A-Fa-f]{2})*"
_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
#: RFC 2397. Taken out of the request before it is looked at any further: see ``attached.py``.
_DATA: dict[str, Any] = {
    "type": "string",
    "pattern": f"^data:(?:{_TOKEN}/{_TOKEN})?(?:;{_TOKEN}={_TOKEN})*(?:;base64,{_BASE64}|,{_ESCAPED})$",
}
_SOURCES = (_URL, _DATA)
#: Another job's video, where a video is taken.
_JOB: dict[str, Any] = {
    "type": "string",
    "pattern": f"^{OF_JOB}{UUID}$",
    "examples": [f"{OF_JOB}{JOB_ID}"],
}


def _url_or_job(value: Any, url: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, str) or not value.startswith(OF_JOB):
        return url(value)
    if re.fullmatch(_JOB["pattern"], value) is None:
        raise ValueError(f"give {OF_JOB} with the id of a job")
    return value


#: Where the bytes of an input are, or they themselves.
Source = Annotated[HttpUrl, WithJsonSchema({"anyOf": list(_SOURCES)})]
#: The same for an input that may be a video. What is no URL stays a text.
SourceOrJob = Annotated[
    HttpUrl,
    WrapValidator(_url_or_job),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"anyOf": [*_SOURCES, _JOB]}),
]
