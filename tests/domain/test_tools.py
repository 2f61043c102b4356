"""Who runs a call, what a server tool looks like to the model, and which calls a crash lets be made again."""

import attrs
import pytest

from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.tools import (
    AGENT_PARAMETERS,
    ALL_SERVER_TOOLS,
    ChoiceMode,
    HttpTool,
    OfferedTool,
    ServerTool,
    ToolChoice,
    allowed_tools,
    kind_of_call,
    may_fire_again,
    offer,
)
from dwctl_trio.testing.played_runs import CATALOG, OFFERED_TOOLS, SERVER_TOOLS

_CLIENT_TOOLS = tuple(tool for tool in OFFERED_TOOLS if tool.kind is not CallKind.SERVER)


@pytest.mark.parametrize("tool", OFFERED_TOOLS, ids=lambda tool: tool.name)
def test_whoever_offers_a_tool_runs_it(tool: OfferedTool) -> None:
    assert kind_of_call(OFFERED_TOOLS, OFFERED_TOOLS, tool.name) is tool.kind


@pytest.mark.parametrize(
    ("tools", "kind"),
    [
        (OFFERED_TOOLS, CallKind.SERVER),
        (SERVER_TOOLS, CallKind.SERVER),
        (_CLIENT_TOOLS, CallKind.FUNCTION),
        ((), CallKind.FUNCTION),
    ],
)
def test_a_name_that_nobody_offered_is_the_servers_to_answer_if_it_offers_anything(
    tools: tuple[OfferedTool, ...], kind: CallKind
) -> None:
    assert kind_of_call(tools, tools, "unheard_of") is kind


@pytest.mark.parametrize("offered", [OFFERED_TOOLS, _CLIENT_TOOLS])
def test_a_call_of_a_tool_that_is_not_allowed_is_the_servers_to_refuse(offered: tuple[OfferedTool, ...]) -> None:
    allowed = allowed_tools(offered, ToolChoice(allowed=("run_code",)))

    assert [tool.name for tool in allowed] == ["run_code"]
    assert kind_of_call(offered, allowed, "get_weather") is CallKind.SERVER
    assert kind_of_call(offered, allowed, "run_code") is CallKind.CUSTOM


@pytest.mark.parametrize("choice", [ToolChoice(mode=ChoiceMode.NONE), ToolChoice(allowed=("run_code",))])
@pytest.mark.parametrize("offered", [OFFERED_TOOLS, _CLIENT_TOOLS, ()])
@pytest.mark.parametrize("name", ["get_weather", "unheard_of"])
def test_no_client_gets_a_call_that_its_choice_forbids(
    choice: ToolChoice, offered: tuple[OfferedTool, ...], name: str
) -> None:
    allowed = allowed_tools(offered, choice)

    assert kind_of_call(offered, allowed, name, choice=choice) is CallKind.SERVER


def test_all_the_servers_tools_may_be_allowed_at_once() -> None:
    allowed = allowed_tools(OFFERED_TOOLS, ToolChoice(allowed=(ALL_SERVER_TOOLS, "run_code")))

    assert {tool.name for tool in allowed} == {tool.name for tool in SERVER_TOOLS} | {"run_code"}


def test_all_tools_are_allowed_unless_the_choice_says_which() -> None:
    assert allowed_tools(OFFERED_TOOLS, ToolChoice()) == OFFERED_TOOLS


def test_an_http_tool_is_offered_with_its_schema() -> None:
    search = CATALOG["search"]
    assert isinstance(search, HttpTool)

    offered = offer(search)

    assert offered == OfferedTool(
        kind=CallKind.SERVER, name="search", description="Find.", parameters=search.parameters
    )


def test_an_agent_is_offered_as_a_tool_that_takes_a_task() -> None:
    assert offer(CATALOG["researcher"]).parameters == AGENT_PARAMETERS


def test_a_tool_without_a_description_is_offered_without_one() -> None:
    assert offer(attrs.evolve(CATALOG["search"], description="")).description is None


@pytest.mark.parametrize(
    ("tool", "may_again"),
    [(CATALOG["search"], False), (CATALOG["lookup"], True), (CATALOG["researcher"], True), (None, False)],
)
def test_only_idempotent_tools_and_agents_are_called_again_after_a_crash(
    tool: ServerTool | None, may_again: bool
) -> None:
    assert may_fire_again(tool) is may_again


def test_the_headers_of_a_tool_are_not_shown_where_it_is_printed() -> None:
    search = CATALOG["search"]
    assert isinstance(search, HttpTool)

    assert "hush" not in repr(attrs.evolve(search, headers=(("authorization", "hush"),)))
