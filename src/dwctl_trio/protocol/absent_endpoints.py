"""The endpoints of OpenAI's that this server has not, with the reason: errors tell it, and so does the reference."""

import re
from collections.abc import Mapping
from typing import Final

_NO_CONVERSATIONS = (
    "This server keeps no conversations: go on with `previous_response_id`, or send the history as `input`."
)

ABSENT_ENDPOINTS: Final[Mapping[str, str]] = {
    "POST /v1/responses/compact": "Nothing is compacted here: send a shorter `input` when a conversation gets long.",
    "WebSocket /v1/responses": "Server-sent events only; a stream that was cut is told again by GET.",
    "POST /v1/responses?beta=true": (
        "The query is not looked at, and the header `openai-beta: responses_multi_agent=v1` neither: agents are tools "
        "of the configuration, see [Configure tools](../how-to/configure-tools.md)."
    ),
    "/v1/conversations": _NO_CONVERSATIONS,
    "/v1/conversations/{id}": _NO_CONVERSATIONS,
    "/v1/conversations/{id}/items": _NO_CONVERSATIONS,
    "/v1/conversations/{id}/items/{item_id}": _NO_CONVERSATIONS,
    "/v1/agents": "Agents are tools of the configuration; there are no sessions.",
}
"""Methods and paths; without a method: all of them. Fields and values in a reason stand in backticks."""


def _pattern(name: str) -> re.Pattern[str]:
    """What is asked for as *name*: a method, a blank and a path."""
    method, _, path = name.rpartition(" ")
    return re.compile(f"{method or '[A-Z]+'} {re.sub('{[a-z_]+}', '[^/]+', path)}")


_URLS: Final = {
    _pattern(name): reason.replace("`", "'")
    for name, reason in ABSENT_ENDPOINTS.items()
    if not name.startswith("WebSocket") and "?" not in name  # of URLs that are there
}


def why_absent(method: str, path: str) -> str | None:
    """Why *method* of *path* is not there, as an error tells it; None where OpenAI has no such thing either."""
    asked = f"{method} {path}"
    return next((reason for pattern, reason in _URLS.items() if pattern.fullmatch(asked)), None)
