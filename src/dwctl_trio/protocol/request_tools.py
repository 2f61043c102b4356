"""The ``tools`` and the ``tool_choice`` of a request: JSON to values, and back for the store.

What they come to, the tools that the model is offered, is kept beside them and rendered here, too.

Rule 1: each name once, within OpenAI's bounds.
Rule 2: a server's tool is a name here; whoever knows the server's tools passes their names.
Rule 3: a tool that we could not run as it is meant is refused, not ignored.

Source: OpenAI Responses API reference, "Create a response", ``tools`` and ``tool_choice``; OpenAPI document,
``FunctionToolParam``.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import RequestTool, ServerToolReference
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, FREE_CHOICE, ChoiceMode, OfferedTool, ToolChoice
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields, joined, wrong_type
from dwctl_trio.protocol.offered_tools import as_bytes, as_json, render_client_tool
from dwctl_trio.protocol.output_items import SERVER_LABEL

TOOLS_MAX = 128
"""OpenAI's bound."""
NAME_CHARACTERS_MAX = 128
"""OpenAI's bound."""
TOOL_TYPES = ("function", "custom", "mcp", "dwctl:tool")

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_ELSEWHERE = ("server_url", "connector_id", "tunnel_id", "authorization", "headers")
"""Of an MCP server that is not ours."""
_UNSUPPORTED = ("allowed_callers", "async", "defer_loading", "output_schema")
"""Accepted only where they say what holds anyway."""
_HOW_TO_NAME_OURS = f"this server's own tools are {{'type': 'mcp', 'server_label': '{SERVER_LABEL}'}}"


def parse_request_tools(fields: Fields, server_tools: Collection[str] | None = None) -> tuple[RequestTool, ...] | None:
    """The ``tools`` of a request body; None if there is no such key.

    Args:
        fields: The body.
        server_tools: The names of the server's tools; None lets any name through.

    Raises:
        InvalidRequest: With the path of what is wrong in them.
    """
    entries = fields.items("tools")
    if entries is None:
        return None
    _check_count(len(entries))
    tools: list[RequestTool] = []
    taken: set[str] = set()
    for index, entry in enumerate(entries):
        for path, tool in _parse_tool(Fields(entry, f"tools[{index}]")):
            if tool.name in taken:
                raise InvalidRequest(
                    f"Invalid '{path}': an earlier tool has the same name. Each name may be used once.", param=path
                )
            if server_tools is not None and isinstance(tool, ServerToolReference):
                _check_known(tool.name, server_tools, path)
            taken.add(tool.name)
            tools.append(tool)
    _check_count(len(tools))
    return tuple(tools)


def _check_count(count: int) -> None:
    if count > TOOLS_MAX:
        raise InvalidRequest(
            f"Invalid 'tools': expected at most {TOOLS_MAX} tools, but got {count}.",
            param="tools",
            code="array_above_max_length",
        )


def _check_known(name: str, server_tools: Collection[str], path: str) -> None:
    if name != ALL_SERVER_TOOLS and name not in server_tools:
        known = f"the tools of this server are {joined(server_tools)}" if server_tools else "this server has no tools"
        raise InvalidRequest(f"Invalid '{path}': there is no server tool '{name}'; {known}.", param=path)


def _parse_tool(fields: Fields) -> list[tuple[str, RequestTool]]:
    """The tools that one entry is, each with the path of its name."""
    kind = fields.require("type", fields.text)
    match kind:
        case "function":
            return [(fields.path("name"), _parse_function(fields))]
        case "custom":
            return [(fields.path("name"), _parse_custom(fields))]
        case "dwctl:tool":
            fields.refuse_unknown(("type", "name"))
            return [(fields.path("name"), ServerToolReference(name=_parse_name(fields)))]
        case "mcp":
            return _parse_mcp(fields)
        case _:
            raise _unsupported_type(fields, TOOL_TYPES)


def _parse_function(fields: Fields) -> OfferedTool:
    fields.refuse_unknown(("type", "name", "description", "parameters", "strict", *_UNSUPPORTED))
    fields.refuse_set(_UNSUPPORTED)
    fields.object("parameters")
    return OfferedTool(
        kind=CallKind.FUNCTION,
        name=_parse_name(fields),
        description=fields.text("description"),
        parameters=as_bytes(fields.raw("parameters")),
        strict=fields.flag("strict"),
    )


def _parse_custom(fields: Fields) -> OfferedTool:
    fields.refuse_unknown(("type", "name", "description", "format", *_UNSUPPORTED))
    fields.refuse_set(_UNSUPPORTED)
    form = fields.object("format")
    if form is not None:
        kind = form.require("type", lambda name: form.choice(name, ("text", "grammar")))
        form.refuse_unknown(("type", "syntax", "definition") if kind == "grammar" else ("type",))
        if kind == "grammar":
            form.require("syntax", lambda name: form.choice(name, ("lark", "regex")))
            form.require("definition", form.text)
    return OfferedTool(
        kind=CallKind.CUSTOM,
        name=_parse_name(fields),
        description=fields.text("description"),
        format=as_bytes(fields.raw("format")),
    )


def _parse_mcp(fields: Fields) -> list[tuple[str, RequestTool]]:
    """The server's tools by OpenAI's own way to name those of an MCP server."""
    known = ("type", "server_label", "server_description", "allowed_tools", "require_approval")
    fields.refuse_unknown((*known, *_ELSEWHERE, *_UNSUPPORTED))
    _check_label(fields)
    fields.text("server_description")
    for name in _ELSEWHERE:
        if fields.raw(name) is not None:
            path = fields.path(name)
            raise InvalidRequest(
                f"Unsupported '{path}': other MCP servers cannot be reached from here; {_HOW_TO_NAME_OURS}.",
                param=path,
                code="unsupported_parameter",
            )
    fields.refuse_set(_UNSUPPORTED)
    if fields.raw("require_approval") not in (None, "never"):
        path = fields.path("require_approval")
        raise InvalidRequest(
            f"Unsupported '{path}': this server runs its tools without asking; use 'never'.",
            param=path,
            code="unsupported_value",
        )
    if fields.raw("allowed_tools") is None:
        return [(fields.path("server_label"), ServerToolReference(name=ALL_SERVER_TOOLS))]
    return _parse_allowed_names(fields)


def _parse_allowed_names(fields: Fields) -> list[tuple[str, RequestTool]]:
    """The names in ``allowed_tools``: an array, or an object that holds one."""
    holder, name = fields, "allowed_tools"
    if isinstance(fields.raw(name), dict):
        holder, name = Fields(fields.raw(name), fields.path(name)), "tool_names"
        holder.refuse_unknown((name,))
    named: list[tuple[str, RequestTool]] = []
    for index, entry in enumerate(holder.require(name, holder.items)):
        path = f"{holder.path(name)}[{index}]"
        if not isinstance(entry, str):
            raise wrong_type(path, "a string", entry)
        _check_name(entry, path)
        named.append((path, ServerToolReference(name=entry)))
    return named


def _parse_name(fields: Fields) -> str:
    name = fields.require("name", lambda key: fields.text(key, length_max=NAME_CHARACTERS_MAX))
    _check_name(name, fields.path("name"))
    return name


def _check_name(name: str, path: str) -> None:
    if len(name) > NAME_CHARACTERS_MAX or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"Invalid '{path}': expected 1 to {NAME_CHARACTERS_MAX} characters out of letters, digits, '_' and '-'.",
            param=path,
        )


def _check_label(fields: Fields) -> None:
    label = fields.require("server_label", fields.text)
    if label != SERVER_LABEL:
        path = fields.path("server_label")
        raise InvalidRequest(
            f"Unsupported '{path}': other MCP servers cannot be reached from here; {_HOW_TO_NAME_OURS}.",
            param=path,
            code="unsupported_value",
        )


def _unsupported_type(fields: Fields, supported: Sequence[str]) -> InvalidRequest:
    path = fields.path("type")
    return InvalidRequest(
        f"Unsupported '{path}': supported values are {joined(supported)}.", param=path, code="unsupported_value"
    )


def parse_tool_choice(fields: Fields, tools: tuple[RequestTool, ...] | None) -> ToolChoice:
    """The ``tool_choice`` of a request body.

    Args:
        fields: The body.
        tools: Its ``tools``. Where they name all tools of the server, or there is no such key, any name is let
            through: only the server can tell.

    Raises:
        InvalidRequest: It is malformed, or names a tool that is not offered.
    """
    value = fields.raw("tool_choice")
    if value is None:
        return FREE_CHOICE
    if isinstance(value, str):
        modes = [mode.value for mode in ChoiceMode]
        return ToolChoice(mode=ChoiceMode(fields.require("tool_choice", lambda name: fields.choice(name, modes))))
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "a string or an object", value)
    choice = Fields(value, "tool_choice")
    if choice.require("type", choice.text) != "allowed_tools":
        name = _parse_reference(choice, (*TOOL_TYPES, "allowed_tools"))
        _check_offered(name, tools)
        return ToolChoice(mode=ChoiceMode.REQUIRED, name=name)
    choice.refuse_unknown(("type", "mode", "tools"))
    mode = choice.require("mode", lambda name: choice.choice(name, ("auto", "required")))
    entries = choice.require("tools", choice.items)
    if not entries:
        path = choice.path("tools")
        raise InvalidRequest(
            f"Invalid '{path}': expected at least one tool, but got none.", param=path, code="empty_array"
        )
    names = [
        _parse_reference(Fields(entry, f"{choice.path('tools')}[{index}]"), TOOL_TYPES)
        for index, entry in enumerate(entries)
    ]
    for name in names:
        _check_offered(name, tools)
    return ToolChoice(mode=ChoiceMode(mode), allowed=tuple(dict.fromkeys(names)))


def _parse_reference(fields: Fields, supported: Sequence[str]) -> str:
    """The name of the tool that *fields* refers to; of which kind it is, its definition says."""
    kind = fields.require("type", fields.text)
    if kind not in TOOL_TYPES:
        raise _unsupported_type(fields, supported)
    if kind == "mcp":
        fields.refuse_unknown(("type", "server_label", "name"))
        _check_label(fields)
    else:
        fields.refuse_unknown(("type", "name"))
    return _parse_name(fields)


def _check_offered(name: str, tools: tuple[RequestTool, ...] | None) -> None:
    names = None if tools is None else {tool.name for tool in tools}
    if names is not None and name not in names and ALL_SERVER_TOOLS not in names:
        raise InvalidRequest(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")


def render_request_tools(tools: tuple[RequestTool, ...] | None) -> list[dict[str, object]] | None:
    """*tools* in the client's vocabulary; ``parse_request_tools`` gives them back."""
    return None if tools is None else [_render_tool(tool) for tool in tools]


def _render_tool(tool: RequestTool) -> dict[str, object]:
    if isinstance(tool, OfferedTool):
        return render_client_tool(tool)
    if tool.name == ALL_SERVER_TOOLS:
        return {"type": "mcp", "server_label": SERVER_LABEL}
    return {"type": "dwctl:tool", "name": tool.name}


def encode_tools(tools: Iterable[OfferedTool]) -> bytes:
    """What the model is offered, as a row keeps it."""
    return json.encode(render_tools(tools))


def render_tools(tools: Iterable[OfferedTool]) -> list[dict[str, object]]:
    """*tools* as the response's row keeps them."""
    return [
        {
            "kind": tool.kind.value, "name": tool.name, "description": tool.description,
            "parameters": as_json(tool.parameters), "strict": tool.strict, "format": as_json(tool.format),
        }
        for tool in tools
    ]  # fmt: skip


def parse_tools(stored: Sequence[Mapping[str, Any]]) -> tuple[OfferedTool, ...]:
    """The tools that ``render_tools`` wrote, decoded; our own rows are trusted."""
    return tuple(
        OfferedTool(
            kind=CallKind(tool["kind"]),
            name=tool["name"],
            description=tool["description"],
            parameters=as_bytes(tool["parameters"]),
            strict=tool["strict"],
            format=as_bytes(tool["format"]),
        )
        for tool in stored
    )
