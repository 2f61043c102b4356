"""Which tools a response offers its model: what the client asked for, looked up in the server's catalog.

Rule 1: a request without ``tools`` gets those that its model lists; one with ``tools`` gets what it names.
Rule 2: a name stands once; of all the tools that the model lists, those whose names the request uses are left out.

Source: the outside contract of the design.
"""

from collections.abc import Iterator, Sequence

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import ResponseRequest, ServerToolReference
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, OfferedTool, ToolCatalog, offer


def resolve_tools(request: ResponseRequest, *, listed: Sequence[str], catalog: ToolCatalog) -> tuple[OfferedTool, ...]:
    """The tools that the model is offered.

    Args:
        request: What the client asked for; it names no tool that the catalog has not.
        listed: Names of the server tools that the model lists in the configuration.
        catalog: The server's tools.

    Raises:
        InvalidRequest: The choice is of a tool that is not offered, or of one where none is.
    """
    offered = tuple(_offered(request, listed, catalog))
    names = [tool.name for tool in offered]
    assert len(set(names)) == len(names), "the request has each name once, and so has the configuration"
    choice = request.tool_choice
    has_ours = any(tool.kind is CallKind.SERVER for tool in offered)
    for name in choice.allowed or ((choice.name,) if choice.name is not None else ()):
        if name not in names and not (name == ALL_SERVER_TOOLS and has_ours):
            shown = "mcp" if name == ALL_SERVER_TOOLS else name
            raise InvalidRequest(f"Tool choice '{shown}' not found in 'tools' parameter.", param="tool_choice")
    if choice.mode is ChoiceMode.REQUIRED and not names:
        raise InvalidRequest("Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice")
    return offered


def _offered(request: ResponseRequest, listed: Sequence[str], catalog: ToolCatalog) -> Iterator[OfferedTool]:
    if request.tools is None:
        yield from (offer(catalog[name]) for name in listed)
        return
    named = {tool.name for tool in request.tools}
    for tool in request.tools:
        match tool:
            case OfferedTool():
                yield tool
            case ServerToolReference(name=name) if name == ALL_SERVER_TOOLS:
                yield from (offer(catalog[name]) for name in listed if name not in named)
            case ServerToolReference(name=name):
                yield offer(catalog[name])
