"""The arguments of an agent: one task, in JSON."""

import msgspec

from dwctl_trio.domain.errors import ToolFailed
from dwctl_trio.domain.response import ErrorType


def read_task(arguments: str) -> str:
    """The task in *arguments*, as ``AGENT_PARAMETERS`` describes them.

    Raises:
        ToolFailed: They are something else.
    """
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        decoded = None
    task = decoded.get("input") if isinstance(decoded, dict) else None
    if not isinstance(task, str):
        raise ToolFailed(
            ErrorType.TOOL_ARGUMENTS_INVALID, 'The arguments must be a JSON object like {"input": "the task"}.'
        )
    return task
