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

import attrs

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import RequestTool, ServerToolReference
from dwctl_trio.domain.tools import (
    ALL_SERVER_TOOLS,
    FREE_CHOICE,
    ChoiceMode,
    Namespace,
    OfferedTool,
    ToolChoice,
    put_into,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.fields import Fields, joined, wrong_type
from dwctl_trio.protocol.offered_tools import as_bytes, as_json
from dwctl_trio.protocol.output_items import SERVER_LABEL
from dwctl_trio.protocol.parameters import TOOL_CHOICES, TOOL_TYPES, Support, Table, accepted, names, plain_note

TOOLS_MAX = 128
"""OpenAI's bound."""
CALLERS = ("direct",)
SYNTAXES = ("lark", "regex")
ALLOWED_MODES = ("auto", "required")
NAME_CHARACTERS_MAX = 128
"""OpenAI's bound."""
_MEMBER_TYPES = {name: TOOL_TYPES[name] for name in ("function", "custom")}
"""Of what is in a namespace."""
HOSTED_TOOL_TYPES = frozenset(names(TOOL_TYPES, Support.REFUSED))
"""Tools that OpenAI's servers run, or hand over in ways of their own."""
_REFERABLE_TYPES = {name: entry for name, entry in TOOL_TYPES.items() if name != "namespace"}
_CHOICE_TYPES = {name: entry for name, entry in TOOL_CHOICES.items() if name not in {*ChoiceMode}}
NAME = re.compile(r"[a-zA-Z0-9_-]+")
_ELSEWHERE = ("server_url", "connector_id", "tunnel_id", "authorization", "headers")
"""Of an MCP server that is not ours."""
_UNSUPPORTED = ("async", "defer_loading")
"""Accepted only where they say nothing."""
_HOW_TO_NAME_OURS = f"this server's own tools are {{'type': 'mcp', 'server_label': '{SERVER_LABEL}'}}"


def parse_request_tools(
    fields: Fields, server_tools: Collection[str] | None = None, *, ignores_hosted: bool = False
) -> tuple[RequestTool, ...] | None:
    """The ``tools`` of a request body; None if there is no such key.

    Args:
        fields: The body.
        server_tools: The names of the server's tools; None lets any name through.
        ignores_hosted: Leave tools out that OpenAI's servers run, which are refused otherwise.

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
        named = Fields(entry, f"tools[{index}]")
        if ignores_hosted and named.raw("type") in HOSTED_TOOL_TYPES:
            continue
        for path, tool in _parse_tool(named):
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
        case "namespace":
            return _parse_namespace(fields)
        case _:
            raise _unsupported_type(fields, kind, TOOL_TYPES)


def _parse_function(fields: Fields) -> OfferedTool:
    _refuse_nested(fields, "function")
    known = ("type", "name", "description", "parameters", "strict", "output_schema", "allowed_callers")
    fields.refuse_unknown((*known, *_UNSUPPORTED))
    _check_callers(fields)
    fields.object("parameters")
    fields.object("output_schema")
    return OfferedTool(
        kind=CallKind.FUNCTION,
        name=_parse_name(fields),
        description=fields.text("description"),
        parameters=as_bytes(fields.raw("parameters")),
        strict=fields.flag("strict"),
    )


def _refuse_nested(fields: Fields, name: str) -> None:
    """Raise for a tool in the shape of chat completions, which programs that come from there send."""
    if name in fields.names():
        path = fields.path(name)
        raise InvalidRequest(
            f"Unknown parameter: '{path}'. Here 'name' and the rest stand beside 'type', as in {{'type': '{name}', "
            "'name': …}; only chat completions nests them.",
            param=path,
            code="unknown_parameter",
        )


def _check_callers(fields: Fields) -> None:
    """Raise for what a tool asks for that nobody here does; that the model itself calls it holds anyway."""
    fields.refuse_set(_UNSUPPORTED)
    for index, caller in enumerate(fields.items("allowed_callers") or ()):
        if caller not in CALLERS:
            path = f"{fields.path('allowed_callers')}[{index}]"
            raise InvalidRequest(
                f"Unsupported '{path}': supported values are {joined(CALLERS)}.", param=path, code="unsupported_value"
            )


def _parse_custom(fields: Fields) -> OfferedTool:
    _refuse_nested(fields, "custom")
    fields.refuse_unknown(("type", "name", "description", "format", "allowed_callers", *_UNSUPPORTED))
    _check_callers(fields)
    form = fields.object("format")
    if form is not None:
        kind = form.require("type", lambda name: form.choice(name, ("text", "grammar")))
        form.refuse_unknown(("type", "syntax", "definition") if kind == "grammar" else ("type",))
        if kind == "grammar":
            form.require("syntax", lambda name: form.choice(name, SYNTAXES))
            form.require("definition", form.text)
    return OfferedTool(
        kind=CallKind.CUSTOM,
        name=_parse_name(fields),
        description=fields.text("description"),
        format=as_bytes(fields.raw("format")),
    )


def _parse_namespace(fields: Fields) -> list[tuple[str, RequestTool]]:
    """The functions and custom tools of a group, which the model knows by the group's name and theirs."""
    fields.refuse_unknown(("type", "name", "description", "tools"))
    namespace = Namespace(name=_parse_name(fields), description=fields.text("description") or "")
    members: list[tuple[str, RequestTool]] = []
    for index, entry in enumerate(_require_tools(fields)):
        member = Fields(entry, f"{fields.path('tools')}[{index}]")
        kind = member.require("type", member.text)
        if kind not in ("function", "custom"):
            raise _unsupported_type(member, kind, _MEMBER_TYPES)
        tool = _parse_function(member) if kind == "function" else _parse_custom(member)
        placed, path = put_into(namespace, tool), member.path("name")
        if len(placed.name) > NAME_CHARACTERS_MAX:
            raise InvalidRequest(
                f"Invalid '{path}': with the namespace before it, '{placed.name[:16]}…' has {len(placed.name)} "
                f"characters; at most {NAME_CHARACTERS_MAX} are allowed.",
                param=path,
                code="string_above_max_length",
            )
        members.append((path, placed))
    return members


def _require_tools(fields: Fields) -> Sequence[object]:
    """The ``tools`` within *fields*, at least one."""
    entries = fields.require("tools", fields.items)
    if not entries:
        path = fields.path("tools")
        raise InvalidRequest(
            f"Invalid '{path}': expected at least one tool, but got none.", param=path, code="empty_array"
        )
    return entries


def _parse_mcp(fields: Fields) -> list[tuple[str, RequestTool]]:
    """The server's tools by OpenAI's own way to name those of an MCP server."""
    known = ("type", "server_label", "server_description", "allowed_tools", "require_approval", "allowed_callers")
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
    _check_callers(fields)
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
        holder.refuse_unknown((name, "read_only"))
        holder.refuse_set(("read_only",))
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
    if len(name) > NAME_CHARACTERS_MAX or not NAME.fullmatch(name):
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


def _unsupported_type(fields: Fields, kind: str, supported: Table) -> InvalidRequest:
    """The error for a type that is not among those of *supported* that are honoured."""
    path, entry = fields.path("type"), TOOL_TYPES.get(kind)
    why = f" {plain_note(entry)}" if entry is not None and entry.support is Support.REFUSED else ""
    return InvalidRequest(
        f"Unsupported '{path}': supported values are {joined(accepted(supported))}.{why}",
        param=path,
        code="unsupported_value",
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
        name = _parse_reference(choice, _CHOICE_TYPES)
        _check_offered(name, tools)
        return ToolChoice(mode=ChoiceMode.REQUIRED, name=name)
    choice.refuse_unknown(("type", "mode", "tools"))
    mode = choice.require("mode", lambda name: choice.choice(name, ALLOWED_MODES))
    names = [
        _parse_reference(Fields(entry, f"{choice.path('tools')}[{index}]"), _REFERABLE_TYPES)
        for index, entry in enumerate(_require_tools(choice))
    ]
    for name in names:
        _check_offered(name, tools)
    return ToolChoice(mode=ChoiceMode(mode), allowed=tuple(dict.fromkeys(names)))


def _parse_reference(fields: Fields, supported: Table) -> str:
    """The name of the tool that *fields* refers to; of which kind it is, its definition says."""
    kind = fields.require("type", fields.text)
    if kind not in accepted(_REFERABLE_TYPES):
        raise _unsupported_type(fields, kind, supported)
    if kind == "mcp":
        fields.refuse_unknown(("type", "server_label", "name"))
        _check_label(fields)
        return ALL_SERVER_TOOLS if fields.raw("name") is None else _parse_name(fields)
    _refuse_nested(fields, kind)
    fields.refuse_unknown(("type", "name"))
    return _parse_name(fields)


def _check_offered(name: str, tools: tuple[RequestTool, ...] | None) -> None:
    if tools is None:
        return
    names = {tool.name for tool in tools}
    has_ours = any(isinstance(tool, ServerToolReference) for tool in tools)
    is_ours = name == ALL_SERVER_TOOLS and has_ours
    if name not in names and ALL_SERVER_TOOLS not in names and not is_ours:
        shown = "mcp" if name == ALL_SERVER_TOOLS else name
        raise InvalidRequest(f"Tool choice '{shown}' not found in 'tools' parameter.", param="tool_choice")


def encode_tools(tools: Iterable[OfferedTool]) -> bytes:
    """What the model is offered, as a row keeps it."""
    return json.encode(render_tools(tools))


def render_tools(tools: Iterable[OfferedTool]) -> list[dict[str, object]]:
    """*tools* as the response's row keeps them."""
    return [
        {
            "kind": tool.kind.value, "name": tool.name, "description": tool.description,
            "parameters": as_json(tool.parameters), "strict": tool.strict, "format": as_json(tool.format),
            **({} if tool.namespace is None else {"namespace": attrs.asdict(tool.namespace)}),
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
            namespace=Namespace(**tool["namespace"]) if "namespace" in tool else None,
        )
        for tool in stored
    )
