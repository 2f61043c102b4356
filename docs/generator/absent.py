"""What OpenAI's Responses surface has and this server has not, with the reason: half of the compatibility page.

Rule 1: what is there, the code is asked for; a name that stands here and is there is an error, and so is one of the
SDK's that stands in neither place.
Rule 2: a reason says what to do instead, where there is something.

Source: OpenAI Python SDK 3.54; OpenAI OpenAPI document.
"""

from collections.abc import Mapping


def _same(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_HOSTED = "Of a hosted tool, which this server has not: offer a `function` that your program runs, or a server's tool."

RESPONSE_FIELDS: Mapping[str, str] = {
    "access_programs": "They are OpenAI's own.",
    "image": "No response of this server has made an image.",
    "input_transformations": "Input is never changed here.",
    "prompt_cache_diagnostics": "What is cached, and how, is the upstream's own affair.",
    "tool_usage": "The steps of a response tell of its tools, at `GET /v1/responses/{id}/steps`.",
}
"""Of the response object; the SDK reads them as not there."""

OUTPUT_ITEMS: Mapping[str, str] = {
    **_same(
        _HOSTED,
        "apply_patch_call apply_patch_call_output code_interpreter_call computer_call computer_call_output "
        "file_search_call image_generation_call local_shell_call local_shell_call_output shell_call shell_call_output "
        "web_search_call program program_output tool_search_call tool_search_output",
    ),
    **_same("An output is the client's to send, as `input`.", "function_call_output custom_tool_call_output"),
    **_same("This server runs its tools without asking.", "mcp_approval_request mcp_approval_response"),
    "mcp_list_tools": "The tools of the server are those of its configuration; the response's `tools` name them.",
    "additional_tools": "Tools do not change within a conversation here.",
    "compaction": "Nothing is compacted here.",
}
"""Types of items in ``output``."""

EVENTS: Mapping[str, str] = {
    **_same(
        "Upstreams of chat completions stream no audio that a response has a place for.",
        "response.audio.delta response.audio.done response.audio.transcript.delta response.audio.transcript.done",
    ),
    **_same(
        _HOSTED,
        "response.code_interpreter_call.completed response.code_interpreter_call.in_progress "
        "response.code_interpreter_call.interpreting response.code_interpreter_call_code.delta "
        "response.code_interpreter_call_code.done response.file_search_call.completed "
        "response.file_search_call.in_progress response.file_search_call.searching "
        "response.image_generation_call.completed response.image_generation_call.generating "
        "response.image_generation_call.in_progress response.image_generation_call.partial_image "
        "response.shell_call_command.added response.shell_call_command.delta response.shell_call_command.done "
        "response.shell_call_output_content.delta response.shell_call_output_content.done "
        "response.web_search_call.completed response.web_search_call.in_progress response.web_search_call.searching",
    ),
    **_same(
        "The tools of the server are those of its configuration; nothing is listed on the way.",
        "response.mcp_list_tools.completed response.mcp_list_tools.failed response.mcp_list_tools.in_progress",
    ),
    **_same(
        "Upstreams give reasoning, and no summaries of it: `response.reasoning_text.*` tells it.",
        "response.reasoning_summary_part.added response.reasoning_summary_part.done "
        "response.reasoning_summary_text.delta response.reasoning_summary_text.done",
    ),
    "response.compaction.compacting": "Nothing is compacted here.",
}
"""Types of events of a stream."""

METHODS: Mapping[str, str] = {
    "client.responses.compact": "See `POST /v1/responses/compact`.",
    "client.responses.connect": "See the WebSocket.",
}
"""Of OpenAI's Python SDK."""
