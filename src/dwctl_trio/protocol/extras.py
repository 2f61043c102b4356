"""All that we send beyond the types of OpenAI's SDK: field by field, event by event, and why.

Rule: what is not on these lists is not sent; ``tests/wire`` holds every answer and event against them.

Source: OpenAI Python SDK 3.54, ``openai.types.responses``.
"""

from collections.abc import Mapping
from typing import Final

from dwctl_trio.protocol.event_stream import SUB_AGENT_TYPE

_OPEN_RESPONSES: Final = "Open Responses demands it."

EXTRA_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "response": {
        "store": "OpenAI sends it, the SDK's type lacks it; Open Responses demands it.",
        "presence_penalty": _OPEN_RESPONSES,
        "frequency_penalty": _OPEN_RESPONSES,
    },
    "custom_tool_call": {"status": "OpenAI sends it, the SDK's type lacks it; Open Responses demands it."},
    "response.function_call_arguments.done": {"name": "OpenAI's reference demands it, the SDK's type lacks it."},
    "error": {"error": "The SDK for Python raises on an error in a stream only if it is within such an object."},
}
"""By ``object`` or ``type`` of what has them."""

EXTRA_EVENTS: Final[Mapping[str, str]] = {
    SUB_AGENT_TYPE: "What a sub-agent does; only for clients that ask for it.",
}
"""By their ``type``; the SDK hands over what it does not know as it is."""
