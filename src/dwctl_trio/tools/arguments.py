"""The arguments of a call: from what the model wrote to what is sent.

Rule 1: what is sent is what was validated, encoded anew: of a key that stands twice, both see the same value.
Rule 2: a message names the path and the rule, so that the model can mend its call; but not of a
deep value for a schema with ``$ref``, which may be recursive: to find the reason would take too long.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import jsonschema_rs
import msgspec

from dwctl_trio.config.schema import compile_schema, refers
from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.response import ErrorType
from dwctl_trio.protocol.json import encode

_PROBLEMS_TOLD_MAX = 5
_EXPLAINED_DEPTH_MAX = 8
"""Of a value for a schema with ``$ref``: each level more may double the time that it takes to find the reason."""
_PROBLEM_CHARACTERS_MAX = 300
"""Of one problem: a schema may list thousands of allowed values."""


def read_arguments(schema: bytes, arguments: str, *, bytes_max: int, depth_max: int) -> bytes:
    """*arguments* as JSON that keeps to *schema*; none at all are ``{}``.

    Args:
        schema: The tool's JSON Schema, encoded.
        arguments: As the model wrote them.
        bytes_max: How long they may be.
        depth_max: How many arrays and objects may lie within one another.

    Raises:
        ToolFailed: They are too long, not JSON, or not what the schema asks for.
    """
    too_deep = f"The arguments are nested too deeply: at most {depth_max} levels are allowed."
    try:
        text = arguments.encode()
        if len(text) > bytes_max:
            raise _invalid(f"The arguments are too long: at most {bytes_max} bytes are allowed.")
        value = msgspec.json.decode(text) if text.strip() else {}
    except RecursionError:
        raise _invalid(too_deep) from None
    except UnicodeEncodeError:
        raise _invalid("The arguments are not valid Unicode.") from None
    except msgspec.DecodeError as error:
        raise _invalid(f"The arguments are not valid JSON: {error}.") from None
    if _is_deeper(value, depth_max):
        raise _invalid(too_deep)
    validator = compile_schema(schema)
    if validator.is_valid(value):
        return encode(value)
    if refers(schema) and _is_deeper(value, _EXPLAINED_DEPTH_MAX):
        raise _invalid("The arguments do not fit the tool's JSON Schema.")
    problems = [_describe(error) for error in islice(validator.iter_errors(value), _PROBLEMS_TOLD_MAX)]
    raise _invalid(f"The arguments do not fit the tool. {' '.join(problems)}")


def _is_deeper(value: object, depth_max: int) -> bool:
    """Whether more than *depth_max* arrays and objects lie within one another; level by level, without recursion."""
    level = [value]
    for _ in range(depth_max + 1):
        level = [child for parent in level if isinstance(parent, dict | list) for child in _children(parent)]
        if not level:
            return False
    return True


def _children(parent: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent


def _invalid(problem: str) -> ToolFailed:
    return ToolFailed(ErrorType.TOOL_ARGUMENTS_INVALID, problem)


def _describe(error: jsonschema_rs.ValidationError) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
    rule = error.schema_path[-1] if error.schema_path else "schema"
    told = f"{path.removeprefix('.') or 'At the top'}: {error.message}"
    if len(told) > _PROBLEM_CHARACTERS_MAX:
        told = f"{told[:_PROBLEM_CHARACTERS_MAX]}…"
    return f"{told} (rule: {rule})."
