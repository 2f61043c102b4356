"""The little JSON Schema that the document needs, as values to be rendered once.

Rule: what a client may send is closed, for the server refuses what it does not know; what it gets is open, so that a
later release may say more.

Source: JSON Schema 2020-12; OpenAPI 3.1.1, "Schema Object".
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]
"""One JSON Schema, as it is to be encoded; never changed once it is made."""

ANYTHING: Schema = {}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ANY_OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
STRING: Schema = {"type": "string"}


def text(*, least: int | None = None, most: int | None = None, pattern: str | None = None) -> Schema:
    """A string, of *least* to *most* characters where they are given."""
    bounds = {"minLength": least, "maxLength": most, "pattern": pattern}
    return STRING | {name: value for name, value in bounds.items() if value is not None}


def number(least: float, most: float) -> Schema:
    """A number within ``[least, most]``."""
    return {"type": "number", "minimum": least, "maximum": most}


def integer(least: int, most: int | None = None) -> Schema:
    """An integer within ``[least, most]``."""
    schema: Schema = {"type": "integer", "minimum": least}
    return schema if most is None else schema | {"maximum": most}


def choice(allowed: Collection[str]) -> Schema:
    """One of these strings."""
    return {"type": "string", "enum": list(allowed)}


def constant(value: str) -> Schema:
    """This string."""
    return {"type": "string", "const": value}


def array(element: Schema, *, least: int | None = None, most: int | None = None) -> Schema:
    """An array of *element*."""
    bounds = {"minItems": least, "maxItems": most}
    return {"type": "array", "items": element} | {name: value for name, value in bounds.items() if value is not None}


def or_null(schema: Schema) -> Schema:
    """*schema*, or null."""
    return {"anyOf": [schema, NULL]}


def any_of(*schemas: Schema) -> Schema:
    """Any of *schemas*."""
    return {"anyOf": list(schemas)}


def ref(name: str) -> Schema:
    """The schema of this name among the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def given(properties: Mapping[str, Schema]) -> Schema:
    """An object of an answer: all *properties* are always there."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def taken(properties: Mapping[str, Schema], required: Collection[str] = ()) -> Schema:
    """An object of a request: null is as good as absent where it is not *required*, and any other name is refused."""
    optional = {name: schema if name in required else or_null(schema) for name, schema in properties.items()}
    schema: Schema = {"type": "object", "properties": optional, "additionalProperties": False}
    return schema | {"required": list(required)} if required else schema


def tagged(schemas: Mapping[str, str]) -> Schema:
    """An object whose ``type`` says which component it is: *schemas* by their tag."""
    mapping = {tag: f"#/components/schemas/{name}" for tag, name in schemas.items()}
    return {
        "oneOf": [ref(name) for name in schemas.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }
