"""The rules between several fields of a request, which a JSON Schema does not tell."""

import re

_RULES = re.compile(
    r"tool call found for|tool output found for|Duplicate call_id|not found in 'tools'|Each name may be used once"
    r"|with the namespace before it"
    r"|must be specified with 'tools'|there is no server tool|expected at least one message"
    r"|expected an integer, but got a number"  # JSON Schema calls 16.0 an integer, and this server does not
    r"|there is no (stored response|input item of this response) with id|last event of this response is number"
    r"|Missing required parameter: 'input'|needs 'stream=true'|must be stored|(Previous response|Item) with id"
)


def is_rule_between_fields(message: str) -> bool:
    """Whether an error's *message* is about such a rule."""
    return _RULES.search(message) is not None
