"""JSON Schemas of tools: compiled once, and never with a look elsewhere.

Rule: whatever a schema or a value holds, to check whether they fit takes time in proportion to their sizes and fetches
nothing. To explain why they do not may take far more if the schema refers to itself.

Source: JSON Schema 2020-12; https://docs.rs/jsonschema for the bounds of its regular expressions.
"""

from functools import lru_cache

import jsonschema_rs
import msgspec

_SCHEMAS_KEPT = 1000
"""More tools than any server has."""


@lru_cache(maxsize=_SCHEMAS_KEPT)
def refers(schema: bytes) -> bool:
    """Whether *schema*, encoded, refers to itself or to a part of it, so that it may be recursive."""
    return b'"$ref"' in schema or b'"$dynamicRef"' in schema or b'"$recursiveRef"' in schema


@lru_cache(maxsize=_SCHEMAS_KEPT)
def compile_schema(schema: bytes) -> jsonschema_rs.Validator:
    """What checks values by *schema*; a text of a value is not repeated in its messages.

    Args:
        schema: Encoded JSON.

    Raises:
        ValueError: It is not a JSON Schema, or refers to one that is not within it; the message says why.
    """
    try:
        return jsonschema_rs.validator_for(msgspec.json.decode(schema), mask="the value", offline=True)
    except jsonschema_rs.ValidationError as error:
        if "not present in a registry" in error.message:
            raise ValueError("a $ref leads out of the schema; put what it refers to under $defs") from error
        place = ".".join(map(str, error.instance_path))
        raise ValueError(f"{place}: {error.message}" if place else error.message) from error
