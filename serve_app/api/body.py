"""What every JSON body of a request keeps to."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def without_nul(value: Any) -> Any:
    """``value`` itself; ValueError for a text with a NUL, which PostgreSQL cannot store or compare."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain NUL characters")
    return value


#: The same in JSON Schema.
WITHOUT_NUL = {"pattern": r"^[^\u0000]*$"}


class RequestBody(BaseModel):
    """Of a request, whose sender may be mistaken in any way."""

    #: Strict: JSON has numbers and truth values of its own, so a text is neither.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _integers(cls, body: Any) -> Any:
        """JSON Schema calls 7.0 an integer as well."""
        if not isinstance(body, dict):
            return body
        numbers = {name: int(value) for name, value in body.items() if isinstance(value, float) and value.is_integer()}
        return {**body, **numbers}

    _storable = field_validator("*")(without_nul)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        for field in handler.resolve_ref_schema(schema).get("properties", {}).values():
            for choice in (field, *field.get("anyOf", ())):
                if choice.get("type") == "string" and not {"pattern", "format", "enum", "const"} & choice.keys():
                    choice |= WITHOUT_NUL
        return schema
