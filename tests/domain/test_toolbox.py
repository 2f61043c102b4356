"""Which tools a response offers its model, from what the client asked for and what the server has."""

import attrs
import pytest

from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.request import RequestTool, ServerToolReference
from dwctl_trio.domain.toolbox import resolve_tools
from dwctl_trio.domain.tools import ALL_SERVER_TOOLS, ChoiceMode, OfferedTool, ToolChoice, offer
from dwctl_trio.testing.example_runs import opening
from dwctl_trio.testing.played_runs import CATALOG

_OWN = OfferedTool(kind=CallKind.FUNCTION, name="get_weather")
_OWN_SEARCH = OfferedTool(kind=CallKind.FUNCTION, name="search")
_LISTED = ("search", "lookup")


def _resolve(tools: tuple[RequestTool, ...] | None, choice: ToolChoice | None = None) -> tuple[OfferedTool, ...]:
    request = attrs.evolve(opening().request, tools=tools, tool_choice=choice or ToolChoice())
    return resolve_tools(request, listed=_LISTED, catalog=CATALOG)


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (None, ["search", "lookup"]),
        ((), []),
        ((_OWN,), ["get_weather"]),
        ((_OWN, ServerToolReference(name="researcher")), ["get_weather", "researcher"]),
        ((ServerToolReference(name=ALL_SERVER_TOOLS), _OWN), ["search", "lookup", "get_weather"]),
        ((ServerToolReference(name=ALL_SERVER_TOOLS), _OWN_SEARCH), ["lookup", "search"]),
    ],
)
def test_the_tools_are_those_that_the_client_names_or_else_those_of_its_model(
    tools: tuple[RequestTool, ...] | None, names: list[str]
) -> None:
    assert [tool.name for tool in _resolve(tools)] == names


def test_a_servers_tool_is_offered_as_it_is_and_a_clients_as_it_came() -> None:
    assert _resolve((_OWN_SEARCH, ServerToolReference(name="lookup"))) == (_OWN_SEARCH, offer(CATALOG["lookup"]))


def test_any_of_the_servers_tools_may_be_demanded_where_there_is_one() -> None:
    choice = ToolChoice(mode=ChoiceMode.REQUIRED, name=ALL_SERVER_TOOLS)

    assert [tool.name for tool in _resolve((_OWN, ServerToolReference(name="lookup")), choice)] == [
        "get_weather",
        "lookup",
    ]


@pytest.mark.parametrize(
    ("tools", "choice", "param", "message"),
    [
        (
            (_OWN,),
            ToolChoice(mode=ChoiceMode.REQUIRED, name="search"),
            "tool_choice",
            "Tool choice 'search' not found in 'tools' parameter.",
        ),
        (
            (_OWN,),
            ToolChoice(mode=ChoiceMode.REQUIRED, name=ALL_SERVER_TOOLS),
            "tool_choice",
            "Tool choice 'mcp' not found in 'tools' parameter.",
        ),
        (
            (_OWN,),
            ToolChoice(allowed=("get_weather", "search")),
            "tool_choice",
            "Tool choice 'search' not found in 'tools' parameter.",
        ),
        (
            (),
            ToolChoice(mode=ChoiceMode.REQUIRED),
            "tool_choice",
            "Tool choice 'required' must be specified with 'tools' parameter.",
        ),
    ],
)
def test_tools_that_cannot_be_offered_are_refused_by_name(
    tools: tuple[RequestTool, ...], choice: ToolChoice | None, param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        _resolve(tools, choice)

    assert (str(refused.value), refused.value.param) == (message, param)
