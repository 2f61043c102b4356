"""The tools that a model is offered and the choice among them, as the response object echoes them.

Rule: the client's tools are echoed as they were given; the server's are one entry that names them, and no more.

Source: OpenAI Responses API reference, "The response object", ``tools`` and ``tool_choice``.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import assert_never

import msgspec

from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import RequestTool, ServerToolReference
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, OfferedTool, ToolChoice
from dwctl_trio.protocol.output_items import SERVER_LABEL


def echo_tools(tools: Sequence[OfferedTool]) -> list[dict[str, object]]:
    """The ``tools`` of a response object."""
    echoed = render_client_tools([tool for tool in tools if tool.kind is not CallKind.SERVER])
    names = [tool.name for tool in tools if tool.kind is CallKind.SERVER]
    if names:
        echoed.append(
            {"type": "mcp", "server_label": SERVER_LABEL, "allowed_tools": names, "require_approval": "never"}
        )
    return echoed


def render_client_tools(tools: Iterable[OfferedTool]) -> list[dict[str, object]]:
    """Tools of the client's as a request defines them, in their namespaces."""
    rendered: list[dict[str, object]] = []
    for namespace, group in groupby(tools, key=lambda tool: tool.namespace):
        members = [_render_client_tool(tool) for tool in group]
        if namespace is None:
            rendered += members
        else:
            fields = {"name": namespace.name, "description": namespace.description}
            rendered.append({"type": "namespace", **fields, "tools": members})
    return rendered


def _render_client_tool(tool: OfferedTool) -> dict[str, object]:
    rendered: dict[str, object] = {"type": tool.kind.value, "name": tool.short_name, "description": tool.description}
    if tool.kind is CallKind.FUNCTION:
        return rendered | {"parameters": as_json(tool.parameters), "strict": tool.strict}
    return rendered if tool.format is None else rendered | {"format": as_json(tool.format)}


def render_request_tools(tools: tuple[RequestTool, ...] | None) -> list[dict[str, object]] | None:
    """*tools* in the client's vocabulary; ``request_tools.parse_request_tools`` gives them back."""
    if tools is None:
        return None
    rendered: list[dict[str, object]] = []
    for is_own, group in groupby(tools, key=lambda tool: isinstance(tool, OfferedTool)):
        if is_own:
            rendered += render_client_tools(tool for tool in group if isinstance(tool, OfferedTool))
        else:
            rendered += [_render_reference(tool.name) for tool in group]
    return rendered


def _render_reference(name: str) -> dict[str, object]:
    if name == ALL_SERVER_TOOLS:
        return {"type": "mcp", "server_label": SERVER_LABEL}
    return {"type": "dwctl:tool", "name": name}


def render_choice(choice: ToolChoice, tools: Iterable[RequestTool]) -> object:
    """The ``tool_choice`` that *choice* is; a name that is not among *tools* is one of the server's."""
    kinds = {tool.name: tool.kind for tool in tools if not isinstance(tool, ServerToolReference)}
    if choice.name is not None:
        return _reference(choice.name, kinds.get(choice.name, CallKind.SERVER))
    if choice.allowed is not None:
        allowed = [_reference(name, kinds.get(name, CallKind.SERVER)) for name in choice.allowed]
        return {"type": "allowed_tools", "mode": choice.mode.value, "tools": allowed}
    return choice.mode.value


def _reference(name: str, kind: CallKind) -> dict[str, object]:
    match kind:
        case CallKind.FUNCTION | CallKind.CUSTOM:
            return {"type": kind.value, "name": name}
        case CallKind.SERVER:
            ours: dict[str, object] = {"type": "mcp", "server_label": SERVER_LABEL}
            return ours if name == ALL_SERVER_TOOLS else ours | {"name": name}
        case _ as never:
            assert_never(never)


def as_json(encoded: bytes | None) -> msgspec.Raw | None:
    """JSON that stays encoded, to be put into other JSON."""
    return None if encoded is None else msgspec.Raw(encoded)


def as_bytes(value: object) -> bytes | None:
    """Decoded JSON in the one encoding that we keep it in; None for null."""
    return None if value is None else msgspec.json.encode(value)
