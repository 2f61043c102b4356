"""``tools:`` of the configuration: HTTP tools, agents, who gets them, what is refused, and how they are shown."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from dwctl_trio.config import parse_config, render_config
from dwctl_trio.config.section import ConfigError
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.tools import AgentTool, HttpTool

CANARY = "c4n4ry"

SMALL: Mapping[str, Any] = {
    "upstreams": {"local": {"base_url": "http://127.0.0.1:8000/v1"}},
    "models": [{"name": "gpt-4o", "upstream": "local"}],
}


def test_a_model_gets_the_tools_of_its_own_entry_or_of_the_one_for_all() -> None:
    tools = [{"name": name, "kind": "http", "url": "https://tools.example/"} for name in ("a", "b")]
    models = [
        {"name": "*", "upstream": "local", "tools": ["b", "a"]},
        {"name": "named", "upstream": "local", "tools": ["a"]},
        {"name": "bare", "upstream": "local"},
    ]
    config = parse_config({**SMALL, "models": models, "tools": tools})

    assert [config.find_tools(model) for model in ("named", "bare", "other")] == [("a",), (), ("b", "a")]
    assert parse_config(SMALL).find_tools("other") == ()


def test_a_tool_that_says_little_has_the_defaults() -> None:
    tools = [
        {"name": "a", "kind": "http", "url": "http://tools.example"},
        {"name": "b", "kind": "agent", "model": "gpt-4o"},
    ]
    config = parse_config({**SMALL, "tools": tools, "limits": {"tool_s": 7, "agent_s": 8}})

    route = ModelRoute(model="gpt-4o", upstream="local", upstream_model="gpt-4o")
    url, schema = "http://tools.example", b'{"type":"object"}'
    assert dict(config.tools) == {
        "a": HttpTool(name="a", description="", parameters=schema, url=url, timeout_s=7.0),
        "b": AgentTool(name="b", description="", route=route, timeout_s=8.0),
    }


def test_agents_may_call_each_other_in_circles_and_be_defined_in_any_order() -> None:
    agent = {"kind": "agent", "model": "gpt-4o"}
    config = parse_config(
        {**SMALL, "tools": [{**agent, "name": "a", "tools": ["b"]}, {**agent, "name": "b", "tools": ["a"]}]}
    )

    assert [tool.tools for tool in config.tools.values() if isinstance(tool, AgentTool)] == [("b",), ("a",)]


def test_an_agent_may_have_a_model_that_the_entry_for_all_serves() -> None:
    models = [{"name": "*", "upstream": "local", "upstream_model": "Qwen"}]
    config = parse_config({**SMALL, "models": models, "tools": [{"name": "a", "kind": "agent", "model": "any-name"}]})

    (agent,) = config.tools.values()

    assert isinstance(agent, AgentTool) and (agent.route.model, agent.route.upstream_model) == ("any-name", "Qwen")


# -- what is refused


def http(**keys: Any) -> dict[str, Any]:
    return {**SMALL, "tools": [{"name": "a", "kind": "http", "url": "https://tools.example/a", **keys}]}


def agent(**keys: Any) -> dict[str, Any]:
    return {**SMALL, "tools": [{"name": "a", "kind": "agent", "model": "gpt-4o", **keys}]}


def error_of(document: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    return str(caught.value)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"tools": {"a": {}}}, "tools: expected a list, but got a mapping"),
        ({"tools": ["a"]}, "tools[0]: expected a mapping of keys, but got a string"),
        ({"tools": [{"name": "a"}]}, "tools[0].kind: is required"),
        ({"tools": [{"name": "a", "kind": "mcp"}]}, "tools[0].kind: 'mcp' is not allowed; allowed: http, agent"),
        (http(name=None), "tools[0].name: is required"),
        (http(name="a b"), "tools[0].name: expected 1 to 64 letters, digits, underscores and hyphens, but got 'a b'"),
        (http(ulr="x"), "tools[0].ulr: unknown key; did you mean 'tools[0].url'?"),
        (http(model="gpt-4o"), None),
        (agent(url="https://tools.example"), None),
        (http(url=None), "tools[0].url: is required"),
        (http(timeout_s=0), "tools[0].timeout_s: expected seconds, above 0 and up to 86400, but got 0"),
        (http(idempotent="yes"), "tools[0].idempotent: expected true or false, but got 'yes'"),
        (http(headers={"X Key": "a"}), "tools[0].headers.X Key: is not the name of an HTTP header"),
        (http(headers={"Host": "a"}), "tools[0].headers.Host: is a header that the server sets itself"),
        (
            http(headers={"Idempotency-Key": "a"}),
            "tools[0].headers.Idempotency-Key: is a header that the server sets itself",
        ),
        (http(parameters=[]), "tools[0].parameters: expected a JSON Schema with type: object"),
        (http(parameters={}), "tools[0].parameters: expected a JSON Schema with type: object"),
        (http(parameters={"type": "array"}), "tools[0].parameters: expected a JSON Schema with type: object"),
        (
            http(parameters={"type": "object", "properties": {"a": {"type": "text"}}}),
            (
                "tools[0].parameters: is not a JSON Schema: properties.a.type: the value is not valid under any of the"
                " schemas listed in the 'anyOf' keyword"
            ),
        ),
        (
            http(parameters={"type": "object", "properties": {"a": {"$ref": "https://schemas.example/a"}}}),
            (
                "tools[0].parameters: is not a JSON Schema: a $ref leads out of the schema; put what it refers to under"
                " $defs"
            ),
        ),
        (agent(model=None), "tools[0].model: is required"),
        (agent(model="gpt-5"), "tools[0].model: 'gpt-5' is served by no entry of models"),
        (agent(model="*"), "tools[0].model: '*' is served by no entry of models"),
        (agent(tools=["b"]), "tools[0].tools: 'b' is not a tool; allowed: a"),
        (agent(tools=["a", "a"]), "tools[0].tools: 'a' stands twice"),
        (agent(instructions=1), "tools[0].instructions: expected a string, but got 1"),
        ({**SMALL, "tools": [*agent()["tools"], *http()["tools"]]}, "tools[1].name: 'a' stands twice"),
        (
            {**http(), "models": [{"name": "m", "upstream": "local", "tools": ["a", "b"]}]},
            "models[0].tools: 'b' is not a tool; allowed: a",
        ),
    ],
)
def test_a_wrong_tool_is_named_with_what_is_allowed(document: dict[str, Any], expected: str | None) -> None:
    message = error_of(document)

    assert message == expected if expected else "unknown key; known keys: " in message


@pytest.mark.parametrize(
    "url",
    [
        *("tools.example/a", "ftp://tools.example/", "file:///etc/passwd", "unix:/run/x", "http://", "http:///a"),
        *("http://user@tools.example/", "http://user:pass@tools.example/", "http://tools.example/#a", "http://a b/"),
        *("http://a:0/", "http://a:70000/", "http://a:b/", "http://[::1/", "http://[fe80::1%25lo]/", "http://a\n/"),
    ],
)
def test_a_url_that_cannot_be_posted_to_is_refused(url: str) -> None:
    assert error_of(http(url=url)).startswith("tools[0].url: expected http://host[:port]/path or https://…, but got ")


@pytest.mark.parametrize(
    "url", ["http://a", "https://tools.example:8443/a/b?c=d&e", "http://[::1]:80/", "http://bücher.example/ü"]
)
def test_a_url_may_be_whatever_can_be_posted_to(url: str) -> None:
    (tool,) = parse_config(http(url=url)).tools.values()

    assert isinstance(tool, HttpTool) and tool.url == url


@pytest.mark.parametrize("value", [set, b"\xff", {None: 1}, 10**400, float])
def test_a_schema_that_no_json_can_hold_is_refused_or_written_as_json_writes_it(value: Any) -> None:
    try:
        parse_config(http(parameters={"type": "object", "default": value}))
    except ConfigError as error:
        assert str(error).startswith("tools[0].parameters: ")


# -- what is shown


def test_what_is_shown_of_a_tool_holds_no_secret() -> None:
    headers = {"Authorization": f"Bearer {CANARY}", "X-Key": CANARY}

    config = parse_config(http(url=f"https://tools.example/a?key={CANARY}", headers=headers))
    shown = render_config(config)

    assert CANARY not in shown + repr(config.tools["a"].name)
    assert yaml.safe_load(shown)["tools"] == [
        {
            "name": "a",
            "description": None,
            "kind": "http",
            "url": "https://tools.example/a?***",
            "parameters": {"type": "object"},
            "timeout_s": 30.0,
            "idempotent": False,
            "allow_private": False,
            "headers": {"Authorization": "***", "X-Key": "***"},
        }
    ]


@pytest.mark.parametrize(
    "document",
    [
        http(url=f"https://user:{CANARY}@tools.example/"),
        http(url=f"ftp://tools.example/?key={CANARY}"),
        http(headers={"X-Key": f"{CANARY}\n"}),
        http(headers={"X-Key": [CANARY]}),
        http(headers=CANARY),
        http(parameters={"type": "object", "properties": {"a": {"type": CANARY}}}),
        {"tools": {"name": CANARY}},
    ],
    ids=str,
)
def test_no_secret_of_a_tool_is_in_an_error(document: dict[str, Any]) -> None:
    assert CANARY not in error_of(document)
