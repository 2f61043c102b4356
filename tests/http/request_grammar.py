"""What the API reference allows in the body of ``POST /v1/responses``, as a grammar.

Rule: it is written from the reference and knows nothing of our parser; where this server allows less, it says so.
What goes on with an earlier response is not in it: there is none.
``request_faults`` breaks it.

Source: OpenAI API reference, "Create a model response"; docs/reference/http-api.md for what this server refuses.
"""

from collections.abc import Mapping
from typing import TypeAlias

import attrs


@attrs.frozen
class Text:
    """A string."""

    characters_max: int | None = None
    wrong: tuple[str, ...] = ()
    """Strings that are short enough and refused all the same."""


@attrs.frozen
class Choice:
    """A string out of a list."""

    values: tuple[str, ...]


@attrs.frozen
class Flag:
    """A boolean."""


@attrs.frozen
class Number:
    """A number within bounds, both included; None: no bound."""

    low: float
    high: float | None
    is_whole: bool = False


@attrs.frozen
class ListOf:
    """An array of one kind of element."""

    element: "Node"
    is_filled: bool = False
    """Whether at least one element is needed."""
    is_named: bool = False
    """Whether each element has a name of its own."""
    too_many: str | None = None
    """An array, as JSON, of one element more than there may be."""


@attrs.frozen
class ObjectOf:
    """An object with these fields; None: with any, which are not looked at."""

    fields: Mapping[str, "Node"] | None = None
    required: frozenset[str] = frozenset()


@attrs.frozen
class Tagged:
    """An object whose ``type`` tells what else is in it."""

    kinds: Mapping[str, ObjectOf]
    default: str | None = None
    """The type where none is given; None: it must be given."""


@attrs.frozen
class Pairs:
    """Metadata: names of the client's, and a text for each."""


@attrs.frozen
class OneOf:
    """Values of several kinds, each with a node of its own."""

    nodes: tuple["Node", ...]


@attrs.frozen
class Offered:
    """The name of a tool that is offered; for any other name, all of *param* is to blame."""

    param: str


@attrs.frozen
class Refused:
    """What this server cannot do: null is all it takes, and false where that says the same."""

    takes_false: bool = False


Node: TypeAlias = Text | Choice | Flag | Number | ListOf | ObjectOf | Tagged | Pairs | OneOf | Offered | Refused

SERVER_TOOLS = ("get_weather", "f", "run-code")
"""The tools of the server that the bodies are sent to; any model gets all of them."""

_FILLED = Text(None, ("",))

_STATUS = Choice(("in_progress", "completed", "incomplete"))
_CACHE_LIFETIME = Choice(("30m", "12h"))
_BREAKPOINT = ObjectOf({"mode": Choice(("explicit",)), "ttl": _CACHE_LIFETIME}, frozenset({"mode"}))
_PART_TEXT = ObjectOf(
    {"text": Text(), "annotations": ListOf(ObjectOf()), "logprobs": ListOf(ObjectOf()),
     "prompt_cache_breakpoint": _BREAKPOINT},
    frozenset({"text"}),
)  # fmt: skip
_IMAGE = ObjectOf(
    {
        "image_url": Text(
            None,
            (
                "",
                "x",
                "ftp://a.example/b",
                "/b.png",
                "https://a.example/b c",
                "https://a.example/b\r\nx: y",
                "data:text/plain;base64,aaaa",
                "data:image/png",
                "data:image/png;base64,a-",
                "data:image/png;base64,a=a",
            ),
        ),
        "file_id": Refused(),
        "detail": Choice(("low", "high", "auto", "original")),
        "prompt_cache_breakpoint": _BREAKPOINT,
    },
    frozenset({"image_url"}),
)
_FILE = ObjectOf(
    {
        "file_data": _FILLED,
        "filename": Text(),
        "file_id": Refused(),
        "file_url": Refused(),
        "detail": Choice(("low", "high", "auto")),
        "prompt_cache_breakpoint": _BREAKPOINT,
    },
    frozenset({"file_data"}),
)
_SOUND = ObjectOf({"data": _FILLED, "format": Choice(("mp3", "wav"))}, frozenset({"data", "format"}))
_PART = Tagged(
    {
        "input_text": _PART_TEXT,
        "input_image": _IMAGE,
        "input_file": _FILE,
        "input_audio": ObjectOf({"input_audio": _SOUND}, frozenset({"input_audio"})),
        "output_text": _PART_TEXT,
        "refusal": ObjectOf({"refusal": Text()}, frozenset({"refusal"})),
    }
)
_MESSAGE = ObjectOf(
    {
        "role": Choice(("user", "assistant", "system", "developer")),
        "content": OneOf((Text(), ListOf(_PART))),
        "id": Text(256),
        "status": _STATUS,
        "phase": Choice(("commentary", "final_answer")),
    },
    frozenset({"role", "content"}),
)
_NOT_YET: Mapping[str, Node] = {
    "caller": Tagged({"direct": ObjectOf({})}),
    "async": Refused(True),
}


def _call(text_name: str) -> ObjectOf:
    fields = {
        "id": Text(256), "status": _STATUS, "call_id": _FILLED, "name": _FILLED, "namespace": _FILLED,
        text_name: Text(), **_NOT_YET,
    }  # fmt: skip
    return ObjectOf(fields, frozenset({"call_id", "name", text_name}))


_OUTPUT_PART = Tagged({"input_text": _PART_TEXT, "input_image": _IMAGE, "input_file": _FILE})
_CALL_OUTPUT = ObjectOf(
    {"id": Text(256), "status": _STATUS, "call_id": _FILLED, "name": Text(), "namespace": Text(), **_NOT_YET,
     "output": OneOf((Text(), ListOf(_OUTPUT_PART)))},
    frozenset({"call_id", "output"}),
)  # fmt: skip
_MCP_CALL = ObjectOf(
    {
        "id": Text(256, ("",)),
        "status": Choice(("in_progress", "calling", "completed", "incomplete", "failed")),
        "server_label": Text(),
        "name": _FILLED,
        "arguments": Text(),
        "output": Text(),
        "error": OneOf((Text(), ObjectOf())),
        "approval_request_id": Text(),
    },
    frozenset({"id", "server_label", "name", "arguments"}),
)


def _thoughts(kind: str) -> ListOf:
    return ListOf(Tagged({kind: ObjectOf({"text": Text()}, frozenset({"text"}))}))


_REASONING = ObjectOf(
    {
        "id": Text(256),
        "summary": _thoughts("summary_text"),
        "content": _thoughts("reasoning_text"),
        "encrypted_content": Text(),
        "status": _STATUS,
    }
)
_ITEM = Tagged(
    {
        "message": _MESSAGE,
        "reasoning": _REASONING,
        "item_reference": ObjectOf({"id": Text(256, ("",))}, frozenset({"id"})),
        "function_call": _call("arguments"),
        "function_call_output": _CALL_OUTPUT,
        "custom_tool_call": _call("input"),
        "custom_tool_call_output": _CALL_OUTPUT,
        "mcp_call": _MCP_CALL,
    },
    "message",
)
_TOOL_NAME = Text(128, ("", " ", "a b", "a.b", "naïve", "a\n", "*"))
_LATER: Mapping[str, Node] = {
    "async": Refused(True),
    "defer_loading": Refused(True),
    "allowed_callers": ListOf(Choice(("direct",))),
}
_GRAMMAR = ObjectOf({"syntax": Choice(("lark", "regex")), "definition": Text()}, frozenset({"syntax", "definition"}))
_OUR_NAMES = ListOf(Choice(SERVER_TOOLS))
_OUR_FILTER = ObjectOf({"tool_names": _OUR_NAMES, "read_only": Refused(True)}, frozenset({"tool_names"}))
_CLIENTS_TOOL = {
    "function": ObjectOf(
        {
            "name": _TOOL_NAME,
            "description": Text(),
            "parameters": ObjectOf(),
            "strict": Flag(),
            "output_schema": ObjectOf(),
            **_LATER,
        },
        frozenset({"name"}),
    ),
    "custom": ObjectOf(
        {
            "name": _TOOL_NAME,
            "description": Text(),
            "format": Tagged({"text": ObjectOf({}), "grammar": _GRAMMAR}),
            **_LATER,
        },
        frozenset({"name"}),
    ),
}
_TOOL = Tagged(
    {
        **_CLIENTS_TOOL,
        "namespace": ObjectOf(
            {"name": _TOOL_NAME, "description": Text(), "tools": ListOf(Tagged(_CLIENTS_TOOL), is_filled=True)},
            frozenset({"name", "tools"}),
        ),
        "mcp": ObjectOf(
            {
                "server_label": Choice(("dwctl",)),
                "server_description": Text(),
                "allowed_tools": OneOf((_OUR_NAMES, _OUR_FILTER)),
                "require_approval": Choice(("never",)),
                **{name: Refused() for name in ("server_url", "connector_id", "tunnel_id", "authorization", "headers")},
                **_LATER,
            },
            frozenset({"server_label"}),
        ),
        "dwctl:tool": ObjectOf({"name": Choice(SERVER_TOOLS)}, frozenset({"name"})),
    }
)
_CHOSEN = ObjectOf({"name": Offered("tool_choice")}, frozenset({"name"}))
_CHOSEN_OURS = ObjectOf(
    {"server_label": Choice(("dwctl",)), "name": Offered("tool_choice")}, frozenset({"server_label"})
)
_ONE_TOOL = {"function": _CHOSEN, "custom": _CHOSEN, "mcp": _CHOSEN_OURS, "dwctl:tool": _CHOSEN}
_SOME_TOOLS = ObjectOf(
    {"mode": Choice(("auto", "required")), "tools": ListOf(Tagged(_ONE_TOOL), is_filled=True)},
    frozenset({"mode", "tools"}),
)
_MANY_FUNCTIONS = ", ".join(f'{{"type": "function", "name": "f{index}"}}' for index in range(129))
_SCHEMA_NAME = Text(64, ("", " ", "a b", "a.b", "naïve", "a\n"))
_FORMAT = Tagged(
    {
        "text": ObjectOf({}),
        "json_object": ObjectOf({}),
        "json_schema": ObjectOf(
            {"name": _SCHEMA_NAME, "schema": ObjectOf(), "description": Text(), "strict": Flag()},
            frozenset({"name", "schema"}),
        ),
    }
)
_INCLUDE = (
    "dwctl:sub_agents", "message.output_text.logprobs",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)  # fmt: skip
_SUMMARY = Choice(("auto", "concise", "detailed"))

REQUEST = ObjectOf(
    {
        "model": Text(256, ("", " ", "\t\r\n", "\u3000")),
        "input": OneOf((Text(), ListOf(_ITEM, is_filled=True))),
        "instructions": Text(),
        "stream": Flag(),
        "store": Flag(),
        "background": Flag(),
        "service_tier": Choice(("auto", "default", "flex", "priority", "scale", "fast", "ultrafast")),
        "temperature": Number(0, 2),
        "top_p": Number(0, 1),
        "presence_penalty": Number(-2, 2),
        "frequency_penalty": Number(-2, 2),
        "max_output_tokens": Number(16, 2**31 - 1, is_whole=True),
        "max_tool_calls": Number(1, 2**31 - 1, is_whole=True),
        "top_logprobs": Number(0, 20, is_whole=True),
        "text": ObjectOf({"format": _FORMAT, "verbosity": Choice(("low", "medium", "high"))}),
        "reasoning": ObjectOf(
            {
                "effort": Choice(("none", "minimal", "low", "medium", "high", "xhigh", "max")),
                "summary": _SUMMARY,
                "generate_summary": _SUMMARY,
                "context": Choice(("auto", "current_turn", "all_turns")),
                "mode": Choice(("standard",)),
            }
        ),
        "metadata": Pairs(),
        "parallel_tool_calls": Flag(),
        "tools": ListOf(_TOOL, is_named=True, too_many=f"[{_MANY_FUNCTIONS}]"),
        "tool_choice": OneOf(
            (Choice(("auto", "none", "required")), Tagged({**_ONE_TOOL, "allowed_tools": _SOME_TOOLS}))
        ),
        "truncation": Choice(("disabled", "auto")),
        "include": ListOf(Choice(_INCLUDE)),
        "user": Text(512),
        "safety_identifier": Text(128),
        "prompt_cache_key": Text(512),
        "prompt_cache_retention": Choice(("in_memory", "24h")),
        "prompt_cache_options": ObjectOf(
            {
                "mode": Choice(("implicit", "explicit")),
                "ttl": _CACHE_LIFETIME,
                "comparison_response_id": Text(64),
                "prewarm": Refused(True),
            }
        ),
        "background_options": ObjectOf({"completion_window": Choice(("soonest",)), "continuation_id": Text()}),
        "image": ObjectOf({"context_compression": Choice(("auto", "disabled"))}),
        "client_metadata": ObjectOf(),
        "stream_options": ObjectOf({"include_obfuscation": Flag()}),
    },
    frozenset({"model", "input"}),
)
