"""Where a request says that an input is: the type of its ``<input>_url`` fields."""

from typing import Annotated, Any

from pydantic import HttpUrl, WithJsonSchema

_URL: dict[str, Any] = {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}
_TOKEN = "[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105 - of a media type
_ESCAPED = "(?:[!-$&-~]|%[0-9A-Fa-f]{2})*"
_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
#: RFC 2397. Taken out of the request before it is looked at any further: see ``attached.py``.
_DATA: dict[str, Any] = {
    "type": "string",
    "pattern": f"^data:(?:{_TOKEN}/{_TOKEN})?(?:;{_TOKEN}={_TOKEN})*(?:;base64,{_BASE64}|,{_ESCAPED})$",
}
#: What another kind of source is, is added here and to the type.
_SOURCES = (_URL, _DATA)

#: Where the bytes of an input are, or they themselves.
Source = Annotated[HttpUrl, WithJsonSchema({"anyOf": list(_SOURCES)})]
