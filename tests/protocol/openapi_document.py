"""What the tests of the document share: the document, and validators of its components."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema_rs
import msgspec

from dwctl_trio.protocol import json
from dwctl_trio.protocol.openapi.document import render_document


@cache
def document() -> dict[str, Any]:
    """The document, as a client decodes it."""
    decoded: dict[str, Any] = msgspec.json.decode(json.encode(render_document("1.2.3")))
    return decoded


def closed(schema: Any) -> Any:
    """*schema*, in which no object may have more than is told, so that what is missing in it is noticed."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return {"additionalProperties": False} | inner if isinstance(schema.get("properties"), Mapping) else inner


@cache
def validator(name: str, *, is_closed: bool = False) -> jsonschema_rs.Validator:
    """Of the component *name*."""
    schemas = document()["components"]["schemas"]
    components = {"components": {"schemas": closed(schemas) if is_closed else schemas}}
    return jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})


def values_of(schema: Any, key: str) -> Iterator[Any]:
    """All values under *key*, anywhere in *schema*."""
    if isinstance(schema, list):
        for entry in schema:
            yield from values_of(entry, key)
    elif isinstance(schema, Mapping):
        if key in schema:
            yield schema[key]
        for value in schema.values():
            yield from values_of(value, key)
