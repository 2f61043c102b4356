"""What of a request this server supports, as tables: the parser reads them, and so does the reference.

Rule 1: a name is honoured, or a hint, or refused because ignoring it would change the meaning; there is no fourth kind.
Rule 2: a name that stands in no table is unknown, which is another error.
Rule 3: a note says how, or why not and what to do instead; it is part of the error that refuses.

Source: OpenAI Python SDK, ``response_create_params`` and the types that it names; Open Responses specification.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeAlias

import attrs


class Support(StrEnum):
    """What becomes of a name in a request."""

    HONOURED = "honoured"
    """It does what OpenAI documents."""
    HINT = "hint"
    """It is accepted, and changes no answer."""
    REFUSED = "refused"
    """It is a 400: an answer without it would not be what was asked for."""


@attrs.frozen
class Parameter:
    """One name of a request, and what becomes of it."""

    name: str
    """As clients write it; a field of an object with its path, as in ``text.format``."""
    support: Support
    note: str
    """One or two sentences; names of fields and values stand in backticks."""


Table: TypeAlias = Mapping[str, Parameter]
"""Entries by name, in the order in which a reference shows them."""


def _table(*rows: Iterable[Parameter]) -> Table:
    return {entry.name: entry for row in rows for entry in row}


def _honoured(names: str, note: str) -> list[Parameter]:
    """The entries of *names*, which share the note."""
    return [Parameter(name, Support.HONOURED, note) for name in names.split()]


def _hint(names: str, note: str) -> list[Parameter]:
    return [Parameter(name, Support.HINT, note) for name in names.split()]


def _refused(names: str, note: str) -> list[Parameter]:
    return [Parameter(name, Support.REFUSED, note) for name in names.split()]


CREATE_PARAMETERS: Final = _table(
    _honoured("model", "Required; at most 256 characters. A name of the configuration, which the response echoes."),
    _honoured("input", "A string or an array of input items; needed unless `previous_response_id` is there."),
    _honoured(
        "instructions",
        "The first message that the model reads, of role `system`; not inherited from an earlier response.",
    ),
    _honoured(
        "previous_response_id",
        "Goes on with a stored response: the model reads that conversation first, inputs and outputs in order.",
    ),
    _honoured("stream", "Server-sent events with `true`, else one JSON object."),
    _honoured(
        "background",
        "With `true` it waits in the queue and runs there, whatever its client does; needs `store`.",
    ),
    _honoured("store", "`true` unless told otherwise; `false` keeps the ending and the metering only."),
    _honoured("service_tier", "`flex` goes through the queue; all others are served at once, and shown as `default`."),
    _honoured("temperature", "0 to 2; without it the upstream decides."),
    _honoured("top_p", "0 to 1; without it the upstream decides."),
    _honoured("presence_penalty frequency_penalty", "-2 to 2; of Open Responses, not of OpenAI."),
    _honoured("max_output_tokens", "At least 16; for all model calls of the response together, sub-agents' included."),
    _honoured(
        "max_tool_calls",
        "At least 1; calls of the server's tools in the whole response. Further ones are not made.",
    ),
    _honoured("text", "An object with `format` and `verbosity`."),
    _honoured(
        "text.format",
        "`text`, `json_object` or `json_schema`; the upstream is asked for it as `response_format`.",
    ),
    _honoured("text.verbosity", "`low`, `medium` or `high`; passed on to the upstream."),
    _honoured("reasoning", "An object with the fields below."),
    _honoured("reasoning.effort", "`none` to `max`; passed on to the upstream as `reasoning_effort`."),
    _honoured(
        "reasoning.context",
        "`current_turn` keeps earlier turns' reasoning from an upstream that takes reasoning back; `all_turns` "
        "and `auto` do not.",
    ),
    _hint(
        "reasoning.summary reasoning.generate_summary",
        "`auto`, `concise` or `detailed`; echoed. Upstreams give reasoning, and no summaries of it.",
    ),
    _hint("reasoning.mode", "`standard` only."),
    _honoured(
        "tools",
        "At most 128, each name once. Without the key: the server's tools that the model's entry lists.",
    ),
    _honoured("tool_choice", "A mode, one tool, or `allowed_tools`."),
    _honoured("parallel_tool_calls", "`false` is passed on to the upstream."),
    _honoured("include", "What a response is to show beyond the usual."),
    _honoured("top_logprobs", "0 to 20; passed on to the upstream, with `logprobs`."),
    _honoured("metadata", "At most 16 pairs of strings; keys up to 64 characters, values up to 512. Echoed."),
    _hint(
        "truncation",
        "`auto` or `disabled`. Input is never dropped here: if the upstream finds it too long, its error is told.",
    ),
    _hint("user", "At most 512 characters; echoed, and passed on to the upstream."),
    _hint("safety_identifier", "At most 128 characters; echoed."),
    _hint("prompt_cache_key", "At most 512 characters; echoed. What is cached, and how, is the upstream's own affair."),
    _hint("prompt_cache_retention", "`in_memory` or `24h`."),
    _hint("prompt_cache_options", "An object with the fields below."),
    _hint("prompt_cache_options.mode", "`implicit` or `explicit`."),
    _hint("prompt_cache_options.ttl", "`30m` or `12h`."),
    _hint(
        "prompt_cache_options.comparison_response_id",
        "A string; there are no diagnostics of the prompt cache here.",
    ),
    _hint("prompt_cache_options.prewarm", "`false` only: every response of this server has an output."),
    _hint("client_metadata", "An object; the Codex CLI sends its session in it, the SDKs do not know it."),
    _hint("stream_options", "An object with the field below."),
    _hint("stream_options.include_obfuscation", "A boolean; nothing is obfuscated."),
    _hint("background_options", "An object with the fields below."),
    _hint("background_options.completion_window", "`soonest` only; for work that may wait send `service_tier: flex`."),
    _hint("background_options.continuation_id", "A string; the queue of this server knows tiers, and no other order."),
    _hint("image", "An object with the field below."),
    _hint("image.context_compression", "`auto` or `disabled`; images are passed on to the upstream as they are."),
    _refused(
        "conversation",
        "This server keeps no conversations: go on with `previous_response_id`, or send the history as `input`.",
    ),
    _refused("prompt", "This server keeps no prompt templates: send `instructions` and `input`."),
    _refused("moderation", "Nothing is moderated here: have the input and the output judged by a service of yours."),
    _refused("context_management", "Nothing is compacted here: send a shorter `input` when a conversation gets long."),
    _refused("access_programs", "They are OpenAI's own: leave them out."),
)
"""The parameters of ``POST /v1/responses``, with the fields of those that are objects."""

_NO_SUCH_TOOL = "This server has no such tool: leave the item out, or say in a `message` what it says."
_NO_COMPACTION = "Nothing is compacted here: send the conversation itself, or a shorter one."

INPUT_ITEMS: Final = _table(
    _honoured("message", "A role and content; the type may be left out."),
    _honoured(
        "function_call custom_tool_call",
        "A call of the client's tool, from an earlier response; it needs one output, unless it is `incomplete`.",
    ),
    _honoured(
        "function_call_output custom_tool_call_output",
        "A string, or an array of `input_text`, `input_image` and `input_file`.",
    ),
    _honoured(
        "mcp_call",
        "A call that a server ran, with its outcome; the model reads it as a call that was answered.",
    ),
    _honoured("reasoning", "Kept and shown again; given to upstreams whose quirk `reasoning_history` says how."),
    _honoured(
        "item_reference",
        "An item of an earlier response by its id; the type may be left out. Needs that response to be stored.",
    ),
    _hint("mcp_list_tools", "Dropped: the model is offered the tools of this request."),
    _refused(
        "mcp_approval_request mcp_approval_response",
        "This server runs its tools without asking: leave the item out.",
    ),
    _refused("file_search_call web_search_call code_interpreter_call image_generation_call", _NO_SUCH_TOOL),
    _refused("computer_call computer_call_output local_shell_call local_shell_call_output", _NO_SUCH_TOOL),
    _refused("shell_call shell_call_output apply_patch_call apply_patch_call_output", _NO_SUCH_TOOL),
    _refused("tool_search_call tool_search_output program program_output", _NO_SUCH_TOOL),
    _refused("additional_tools", "Tools do not change within a conversation here: send them as `tools`."),
    _refused(
        "configuration_update",
        "Options do not change within a conversation here: send them as `reasoning` and `text`.",
    ),
    _refused("compaction compaction_trigger", _NO_COMPACTION),
)
"""The types of items in ``input``."""

CONTENT_PARTS: Final = _table(
    _honoured("input_text", "Text."),
    _honoured(
        "input_image",
        "`image_url`, an address of http or https or a data URL, which the upstream reads, and `detail`. Not "
        "`file_id`.",
    ),
    _honoured(
        "input_file",
        "`file_data` with its `filename`, for upstreams that take files. Not `file_id` and `file_url`.",
    ),
    _honoured("input_audio", "`data` in base64 and `format`, `mp3` or `wav`, for upstreams that take audio."),
    _honoured("output_text", "What a model said before; its `annotations` are kept, the model does not see them."),
    _honoured("refusal", "What a model said before; for the model it is text."),
)
"""The types of parts in the ``content`` of a message."""

_OFFER_A_FUNCTION = (
    "This server has no such tool: offer a `function` that your program runs, or one of the server's tools."
)

TOOL_TYPES: Final = _table(
    _honoured("function", "A function of the client's; a call of it ends the response, and the client answers it."),
    _honoured(
        "custom",
        "The same with text for arguments. A grammar is told to the model, and nothing holds it to it.",
    ),
    _honoured("mcp", "The server's own tools, with `server_label` `dwctl`. Other MCP servers are refused."),
    _honoured("dwctl:tool", "One of the server's own tools, by its `name`."),
    _refused(
        "web_search web_search_2025_08_26 web_search_preview web_search_preview_2025_03_11 file_search",
        _OFFER_A_FUNCTION,
    ),
    _refused("computer computer_use computer_use_preview code_interpreter image_generation", _OFFER_A_FUNCTION),
    _refused("local_shell shell apply_patch", _OFFER_A_FUNCTION),
    _honoured(
        "namespace",
        "Functions and custom tools under a common name; the model knows each as `<namespace>__<name>`.",
    ),
    _refused(
        "tool_search programmatic_tool_calling",
        "All tools are offered at once here, and called by the model alone: send each as a `function`.",
    ),
)
"""The types of entries in ``tools``; ``tool_choice`` names tools by them, too."""

TOOL_CHOICES: Final = _table(
    _honoured("auto", "The model calls what it likes."),
    _honoured("none", "The model calls nothing; a call that it makes all the same is suppressed."),
    _honoured("required", "The model calls at least one tool; once it has, it is free."),
    _honoured(
        "allowed_tools",
        "The model is offered these tools only, with `mode` `auto` or `required`; a call of any other is suppressed.",
    ),
    _honoured(
        "function custom",
        "The model calls this tool of the client's; until it has, a call of any other is suppressed, then it is free.",
    ),
    _honoured(
        "mcp",
        "The model calls this tool of the server's; until it has, a call of any other is suppressed, then it is free. "
        "Without a `name` it is any of the server's.",
    ),
    _honoured(
        "dwctl:tool",
        "The model calls this tool of the server's; until it has, a call of any other is suppressed, then it is free.",
    ),
)
"""The values of ``tool_choice``, and the types of those that are objects."""

LOGPROBS: Final = "message.output_text.logprobs"
SUB_AGENTS: Final = "dwctl:sub_agents"

INCLUDES: Final = _table(
    _honoured(LOGPROBS, "The log probabilities of the tokens that were said, where the upstream gives them."),
    _honoured(SUB_AGENTS, "Ours: the stream tells what sub-agents do, as `dwctl:sub_agent` events."),
    _hint("message.input_image.image_url", "They are always shown."),
    _hint(
        "reasoning.encrypted_content",
        "Nothing is encrypted here: reasoning is shown as it is, and may be sent back so.",
    ),
    _hint(
        "file_search_call.results web_search_call.results web_search_call.action.sources",
        "No response of this server has any.",
    ),
    _hint("computer_call_output.output.image_url code_interpreter_call.outputs", "No response of this server has any."),
)
"""The values in ``include``."""


def names(table: Table, *supports: Support) -> Sequence[str]:
    """The names of *table* that are of one of *supports*."""
    return [entry.name for entry in table.values() if entry.support in supports]


def accepted(table: Table) -> Sequence[str]:
    """The names of *table* that are not refused."""
    return names(table, Support.HONOURED, Support.HINT)


def names_below(table: Table, path: str) -> Sequence[str]:
    """The names of *table* right below *path*, which is empty or ends with a dot, without it."""
    found = [name.removeprefix(path) for name in table if name.startswith(path)]
    return [name for name in found if "." not in name]


def plain_note(entry: Parameter) -> str:
    """The note of *entry* as an error tells it: in quotes what stands in backticks."""
    return entry.note.replace("`", "'")
