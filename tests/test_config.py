"""Every key of the configuration: from the file, from the environment, refused by name, and shown without secrets."""

import string
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.config import (
    WORKERS_MAX,
    Config,
    UpstreamConfig,
    UpstreamTimeouts,
    find_warnings,
    load_config,
    parse_config,
)
from dwctl_trio.config import render_config as render
from dwctl_trio.config.section import ConfigError
from dwctl_trio.domain.limits import DEFAULT_LIMITS, LIMIT_RULES, Limits
from dwctl_trio.domain.models import ModelRoute, Price
from dwctl_trio.domain.tools import AgentTool, HttpTool
from dwctl_trio.protocol.chat_completions import Quirks

EVERY_KEY = """
host: 127.0.0.2
port: 4001
workers: 2
database_url: postgresql://dwctl:secret@db.example/dwctl
data_dir: /tmp/elsewhere
auth: {mode: none}
upstreams:
  local:
    base_url: "http://127.0.0.1:8000/v1"
    api_key: "${LOCAL_KEY}"
    max_concurrency: 7
    quirks:
      {drop: [user], rename: {max_tokens: max_completion_tokens}, developer_role: false, stream_usage: false,
       named_tool_choice: false, reasoning_history: reasoning_content, efforts: {xhigh: high}}
    headers: {X-Team: "blue ${TEAM}"}
    timeouts: {connect_s: 1, first_byte_s: 2.5, chunk_s: 3, total_s: 4}
    transport: httpx
models:
  - {name: gpt-4o, upstream: local, upstream_model: Qwen3-32B,
     price: {input_per_million: 0.15, output_per_million: "0.60", currency: EUR}, tools: []}
  - {name: "*", upstream: local, tools: [get_weather, researcher]}
tools:
  - {name: get_weather, kind: http, url: "https://tools.example/weather?unit=c", description: The weather.,
     parameters: {type: object, properties: {city: {type: string}}}, timeout_s: 5, idempotent: true,
     allow_private: true, headers: {Authorization: "Bearer ${LOCAL_KEY}"}}
  - {name: researcher, kind: agent, model: gpt-4o, description: Finds out., instructions: Be brief.,
     tools: [get_weather, researcher], timeout_s: 60}
limits: {turns: 3, keep_alive_s: 5}
flex_on_disconnect: cancel
hosted_tools: ignore
http_server: hypercorn
tracing: {endpoint: "http://127.0.0.1:4318/"}
log_level: debug
"""

SMALL: Mapping[str, Any] = {
    "upstreams": {"local": {"base_url": "http://127.0.0.1:8000/v1"}},
    "models": [{"name": "gpt-4o", "upstream": "local"}],
}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def with_upstream(**keys: Any) -> dict[str, Any]:
    return {"upstreams": {"local": {"base_url": "http://127.0.0.1:8000/v1", **keys}}}


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    environment = {"LOCAL_KEY": "sk-1", "TEAM": "whale"}

    config = load_config(write(tmp_path, EVERY_KEY), environment)

    price = Price(input_per_million=Decimal("0.15"), output_per_million=Decimal("0.60"), currency="EUR")
    route = ModelRoute(model="gpt-4o", upstream="local", upstream_model="Qwen3-32B", price=price)
    assert config == Config(
        host="127.0.0.2",
        port=4001,
        workers=2,
        database_url="postgresql://dwctl:secret@db.example/dwctl",
        data_dir=Path("/tmp/elsewhere"),
        auth_mode="none",
        upstreams=(
            UpstreamConfig(
                name="local",
                base_url="http://127.0.0.1:8000/v1",
                api_key="sk-1",
                max_concurrency=7,
                quirks=Quirks(
                    drop=frozenset({"user"}),
                    rename=(("max_tokens", "max_completion_tokens"),),
                    developer_role=False,
                    stream_usage=False,
                    named_tool_choice=False,
                    reasoning_history="reasoning_content",
                    efforts=(("xhigh", "high"),),
                ),
                headers=(("X-Team", "blue whale"),),
                timeouts=UpstreamTimeouts(connect_s=1.0, first_byte_s=2.5, chunk_s=3.0, total_s=4.0),
                transport="httpx",
            ),
        ),
        models=(
            route,
            ModelRoute(model="*", upstream="local", upstream_model="*"),
        ),
        model_tools={"*": ("get_weather", "researcher")},
        tools={
            "get_weather": HttpTool(
                name="get_weather",
                description="The weather.",
                parameters=b'{"type":"object","properties":{"city":{"type":"string"}}}',
                url="https://tools.example/weather?unit=c",
                headers=(("Authorization", "Bearer sk-1"),),
                timeout_s=5.0,
                idempotent=True,
                allow_private=True,
            ),
            "researcher": AgentTool(
                name="researcher",
                description="Finds out.",
                route=route,
                instructions="Be brief.",
                tools=("get_weather", "researcher"),
                timeout_s=60.0,
            ),
        },
        limits=attrs.evolve(DEFAULT_LIMITS, turns=3, keep_alive_s=5.0),
        flex_on_disconnect="cancel",
        hosted_tools="ignore",
        http_server="hypercorn",
        tracing_endpoint="http://127.0.0.1:4318",
        log_level="debug",
    )


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(None, {}) == Config()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n"), {}) == Config(data_dir=tmp_path / ".dwctl")


def test_a_relative_data_dir_is_beside_its_file_and_an_absolute_one_stays(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "data_dir: here/there\n"), {}).data_dir == tmp_path / "here" / "there"
    assert load_config(write(tmp_path, "data_dir: /some/where\n"), {}).data_dir == Path("/some/where")
    assert load_config(None, {"DWCTL_DATA_DIR": "here"}).data_dir == Path("here")


@pytest.mark.parametrize(
    "document",
    [
        {"host": None, "port": None, "data_dir": None, "database_url": None, "log_level": None},
        {"auth": None, "upstreams": None, "models": None, "tools": None, "limits": None},
        {"auth": {"mode": None}, "limits": {"turns": None}},
    ],
)
def test_a_key_without_a_value_is_a_key_that_is_not_there(document: dict[str, Any]) -> None:
    assert parse_config(document) == Config()


def test_null_in_an_upstream_is_its_default() -> None:
    keys = dict.fromkeys(["api_key", "max_concurrency", "quirks", "headers", "timeouts", "transport"])
    flags = {"quirks": dict.fromkeys(field.name for field in attrs.fields(Quirks))}

    assert parse_config(with_upstream(**keys)) == parse_config(with_upstream())
    assert parse_config(with_upstream(**flags)) == parse_config(with_upstream())


# -- the environment


OVERRIDES: list[tuple[str, str, str, Any]] = [
    ("DWCTL_HOST", "127.0.0.9", "host", "127.0.0.9"),
    ("DWCTL_PORT", "4002", "port", 4002),
    ("DWCTL_WORKERS", "3", "workers", 3),
    ("DWCTL_DATABASE_URL", "postgresql://other/db", "database_url", "postgresql://other/db"),
    ("DWCTL_DATA_DIR", "/tmp/Third", "data_dir", Path("/tmp/Third")),
    ("DWCTL_AUTH__MODE", "keys", "auth_mode", "keys"),
    ("DWCTL_FLEX_ON_DISCONNECT", "cancel", "flex_on_disconnect", "cancel"),
    ("DWCTL_HOSTED_TOOLS", "ignore", "hosted_tools", "ignore"),
    ("DWCTL_HTTP_SERVER", "direct", "http_server", "direct"),
    ("DWCTL_LOG_LEVEL", "error", "log_level", "error"),
]


@pytest.mark.parametrize(("variable", "value", "field", "expected"), OVERRIDES)
def test_a_variable_overrides_the_file(tmp_path: Path, variable: str, value: str, field: str, expected: Any) -> None:
    path = write(tmp_path, EVERY_KEY)

    config = load_config(path, {"LOCAL_KEY": "k", "TEAM": "t", variable: value})

    assert getattr(config, field) == expected


@pytest.mark.parametrize("field", attrs.fields(Limits), ids=lambda field: field.name)
def test_every_limit_can_be_set_by_its_name_in_the_environment(field: Any) -> None:
    minimum = field.metadata["minimum"]
    values = {  # the least that keeps the rules, for what the others promise one another
        "lease_s": 1.0,
        "lease_give_up_s": 0.5,
        "lease_renewal_s": 0.2,
        "store_wait_s": 0.05,
        "store_call_s": 0.05,
        "terminal_write_s": 0.1,
        "terminal_retry_s": 0.01,
        "request_body_bytes": 1024,
        "request_bodies_bytes": 2048,
        "follow_poll_s": 0.02,
        "segment_bytes": 1024,
        "queued_event_bytes": 2048,
        "queue_retry_s": 0.01,
        "queue_retry_cap_s": 0.02,
        "cancel_poll_s": 0.005,
        "cancel_wait_s": 0.01,
        "unstored_event_s": 1.0,
        "event_retention_s": 30.0,
        "body_retention_s": 60.0,
        "row_retention_s": 90.0,
        field.name: minimum,
    }
    environment = {f"DWCTL_LIMITS__{name.upper()}": str(value) for name, value in values.items()}

    config = load_config(None, environment)

    assert getattr(config.limits, field.name) == minimum


def test_variables_reach_into_nested_mappings_that_the_file_does_not_have() -> None:
    environment = {
        "DWCTL_UPSTREAMS__MAIN__BASE_URL": "https://models.example/v1",
        "DWCTL_UPSTREAMS__MAIN__TIMEOUTS__FIRST_BYTE_S": "7",
        "DWCTL_UPSTREAMS__MAIN__QUIRKS__DROP": "[user, logprobs]",
    }

    (upstream,) = load_config(None, environment).upstreams

    assert (upstream.name, upstream.base_url) == ("main", "https://models.example/v1")
    assert upstream.timeouts.first_byte_s == 7.0
    assert upstream.quirks.drop == {"user", "logprobs"}


def test_a_variable_finds_a_name_that_is_spelt_with_capitals_and_hyphens(tmp_path: Path) -> None:
    path = write(tmp_path, "upstreams: {My-Models: {base_url: 'http://a/v1', headers: {X-Team: red}}}")
    environment = {
        "DWCTL_UPSTREAMS__MY_MODELS__API_KEY": "sk-2",
        "DWCTL_UPSTREAMS__MY_MODELS__HEADERS__X_TEAM": "blue",
    }

    (upstream,) = load_config(path, environment).upstreams

    assert (upstream.name, upstream.api_key, upstream.headers) == ("My-Models", "sk-2", (("X-Team", "blue"),))


def test_a_list_in_a_variable_is_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "upstreams: {local: {base_url: 'http://a/v1'}}")

    config = load_config(path, {"DWCTL_MODELS": "[{name: a, upstream: local}, {name: b, upstream: local}]"})

    assert [route.model for route in config.models] == ["a", "b"]


def test_what_is_given_on_the_command_line_wins_over_the_environment() -> None:
    variables = {"DWCTL_HOST": "127.0.0.3", "DWCTL_PORT": "1", "DWCTL_WORKERS": "2"}
    config = load_config(None, variables, host="127.0.0.4", port=0, workers=3)

    assert (config.host, config.port, config.workers) == ("127.0.0.4", 0, 3)


def test_variables_of_other_programs_are_left_alone() -> None:
    assert load_config(None, {"HOST": "example", "XDWCTL_PORT": "1", "PATH": ":"}) == Config()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DWCTL_PROT": "1"}, "prot: unknown key; did you mean 'port'?"),
        ({"DWCTL_PORT": "many"}, "port: expected an integer from 0 to 65535, but got 'many'"),
        ({"DWCTL_PORT": "{"}, "DWCTL_PORT: is not valid YAML; put the value in quotes"),
        ({"DWCTL_PORT": "2001-99-99"}, "DWCTL_PORT: is not valid YAML; put the value in quotes"),
        (
            {"DWCTL_PORT__NUMBER": "1", "DWCTL_PORT": "1"},
            "DWCTL_PORT__NUMBER: 'port' is not a mapping of keys; give its whole value as YAML instead",
        ),
        ({"DWCTL_UPSTREAMS__A__API_KEY": "123"}, "upstreams.a.base_url: is required"),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, environment)

    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("tracing", "expected"),
    [
        ({"endpoit": "http://a"}, "tracing.endpoit: unknown key; did you mean 'tracing.endpoint'?"),
        ("http://a", "tracing: expected a mapping of keys, but got a string"),
        ({"endpoint": 4318}, "tracing.endpoint: expected a string, but got 4318"),
    ],
)
def test_a_wrong_key_of_tracing_is_named(tracing: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"tracing": tracing})

    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("localhost:4318", "***"),
        ("grpc://a:4317", "grpc://a:4317"),
        ("http://user:sk-secret@a", "http://***@a"),
        ("http://a/otlp?key=sk-secret", "http://a/otlp?***"),
        ("", "***"),
    ],
)
def test_a_wrong_collector_is_shown_without_its_secrets(endpoint: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"tracing": {"endpoint": endpoint}})

    allowed = "http://host[:port] or https://… without user and password"
    assert str(caught.value) == (
        f"tracing.endpoint: expected {allowed}, but got {shown!r}; "
        "a key of the collector goes into the environment variable OTEL_EXPORTER_OTLP_HEADERS"
    )


def test_a_variable_inside_a_string_is_replaced_wherever_it_stands(tmp_path: Path) -> None:
    text = "upstreams: {local: {base_url: 'http://${HOST_A}:${PORT_A}/v1', quirks: {drop: ['${FIELD}']}}}"

    (upstream,) = load_config(write(tmp_path, text), {"HOST_A": "h", "PORT_A": "8", "FIELD": "user"}).upstreams

    assert (upstream.base_url, upstream.quirks.drop) == ("http://h:8/v1", {"user"})


def test_an_unset_variable_is_named_with_the_key_that_wants_it(tmp_path: Path) -> None:
    path = write(tmp_path, "upstreams: {local: {base_url: 'http://a/v1', quirks: {drop: [user, '${GONE}']}}}")

    with pytest.raises(ConfigError) as caught:
        load_config(path, {})

    expected = "upstreams.local.quirks.drop[1]: the environment variable GONE is not set"
    assert str(caught.value) == expected


# -- routes


def test_a_name_has_its_own_route_before_the_one_for_all() -> None:
    models = [{"name": "*", "upstream": "local"}, {"name": "gpt-4o", "upstream": "local", "upstream_model": "Qwen"}]
    config = parse_config({**SMALL, "models": models})

    named, other = config.find_route("gpt-4o"), config.find_route("any-name")

    assert named is not None and named.upstream_model == "Qwen"
    assert other is not None and (other.model, other.upstream_model) == ("any-name", "any-name")


def test_the_route_for_all_may_name_one_model_of_the_upstream() -> None:
    config = parse_config({**SMALL, "models": [{"name": "*", "upstream": "local", "upstream_model": "Qwen"}]})

    route = config.find_route("any-name")

    assert route is not None and (route.model, route.upstream_model) == ("any-name", "Qwen")


def test_a_name_without_a_route_has_none() -> None:
    assert parse_config(SMALL).find_route("gpt-5") is None


# -- warnings


@pytest.mark.parametrize(
    ("changed", "warned"),
    [
        ({"workers": 8}, False),
        ({"workers": 9}, True),
        ({"workers": 9, "limits": {"store_connections": 5}}, False),
        ({"workers": 9, "database_url": "postgresql://other/db"}, False),
        ({"limits": {"store_connections": 500}}, False),
    ],
)
def test_workers_that_the_embedded_database_has_no_connections_for_are_warned_of(
    changed: dict[str, Any], warned: bool
) -> None:
    warnings = list(find_warnings(parse_config({**SMALL, **changed})))

    problem = "workers: 9 workers may open 104 connections, and PostgreSQL allows 100; lower workers or "
    assert [warning.startswith(problem) for warning in warnings] == [True] * warned


# -- properties


names = st.text(string.ascii_letters + string.digits + "-_. :*é\u2028", min_size=1, max_size=8).filter(str.strip)
numbers = st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
known_names = st.sampled_from(
    [
        *("host", "port", "workers", "database_url", "data_dir", "auth", "upstreams", "models", "tools", "limits"),
        "log_level",
        *("mode", "base_url", "api_key", "max_concurrency", "quirks", "headers", "timeouts", "drop", "rename"),
        "transport",
        *("named_tool_choice", "reasoning_history", "efforts", "xhigh"),
        *("developer_role", "stream_usage", "connect_s", "name", "upstream", "upstream_model", "price", "turns"),
        *("input_per_million", "output_per_million", "currency", "keep_alive_s", "tracing", "endpoint"),
        *("flex_on_disconnect", "hosted_tools", "http_server"),
        *("kind", "url", "parameters", "timeout_s", "idempotent", "instructions"),
    ]
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known_names | names | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def nearly_valid(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document with one value, anywhere in it, replaced by anything."""
    document: dict[str, Any] = yaml.safe_load(EVERY_KEY.replace("${LOCAL_KEY}", "k").replace("${TEAM}", "t"))
    place: Any = document
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            place[key] = draw(trees)
            return document
        place = inner


@given(document=st.dictionaries(known_names | names, trees, max_size=4) | nearly_valid())
@example(document={"limits": {"keep_alive_s": 10**400}})
@example(document={"upstreams": {"a": {"base_url": "http://[/v1"}}})
def test_any_document_is_a_configuration_or_an_error_that_names_a_key(document: dict[str, Any]) -> None:
    try:
        config = parse_config(document)
    except ConfigError as error:
        key, separator, problem = str(error).partition(": ")
        assert separator and problem
        assert any(key.startswith(str(name)) for name in document) or key.startswith(("models[", "limits"))
    else:
        assert render(config)


variables = st.sampled_from(
    [
        *("DWCTL_HOST", "DWCTL_PORT", "DWCTL_AUTH", "DWCTL_AUTH__MODE", "DWCTL_UPSTREAMS__A__BASE_URL", "DWCTL_MODELS"),
        *("DWCTL_UPSTREAMS__A", "DWCTL_LIMITS__TURNS", "DWCTL_", "DWCTL___", "DWCTL_DATABASE_URL", "DWCTL_DATA_DIR"),
    ]
)
texts = st.text(max_size=8) | st.text("[]{}:,*&!%@`'\"|>-?#0123456789.e_ ~\n", max_size=8)


@given(environment=st.dictionaries(variables, texts, max_size=3))
@example(environment={"DWCTL_PORT": "1" * 5000})
@example(environment={"DWCTL_PORT": "2001-99-99"})
@example(environment={"DWCTL_MODELS": "&a [*a]"})
@example(environment={"DWCTL_AUTH": "{? {a: 1} : 2}"})
def test_any_environment_is_a_configuration_or_an_error(environment: dict[str, str]) -> None:
    try:
        config = load_config(None, environment)
    except ConfigError as error:
        assert ": " in str(error)
    else:
        assert render(config)


RULED = {name for rule in LIMIT_RULES for name in (*rule.smaller, rule.larger)}


tool_names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64).filter(
    lambda name: name != "an-agent"
)
schemas = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": st.dictionaries(names, st.sampled_from([{}, True, {"type": "string"}, {"minimum": 0.5}])),
        "required": st.lists(names, max_size=2, unique=True),
        "additionalProperties": st.booleans(),
    },
)


@st.composite
def http_tools(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A valid HTTP tool without secrets."""
    required = {"name": st.just(name), "kind": st.just("http"), "url": st.just("https://tools.example:8443/a%20b")}
    optional = {
        "description": names,
        "parameters": schemas,
        "timeout_s": st.floats(0.001, 86400),
        "idempotent": st.booleans(),
        "allow_private": st.booleans(),
    }
    return draw(st.fixed_dictionaries(required, optional=optional))


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Valid documents without secrets."""
    seconds = st.floats(0.001, 86400)
    prices = st.decimals(0, 1000, places=4).map(str)
    upstream = st.fixed_dictionaries(
        {"base_url": st.sampled_from(["http://a/v1", "https://models.example:8443/v1", "http://[::1]:8000/v1"])},
        optional={
            "max_concurrency": st.integers(1, 100_000),
            "quirks": st.fixed_dictionaries(
                {},
                optional={
                    "drop": st.lists(names, max_size=2, unique=True),
                    "rename": st.dictionaries(names, names, max_size=2),
                    "developer_role": st.booleans(),
                    "stream_usage": st.booleans(),
                    "named_tool_choice": st.booleans(),
                    "reasoning_history": st.sampled_from(["none", "reasoning_content", "reasoning"]),
                    "efforts": st.dictionaries(st.sampled_from(["minimal", "xhigh"]), st.just("high")),
                },
            ),
            "timeouts": st.dictionaries(st.sampled_from(["connect_s", "first_byte_s", "chunk_s", "total_s"]), seconds),
            "transport": st.sampled_from(["direct", "httpx"]),
        },
    )
    upstreams = draw(st.dictionaries(names, upstream, min_size=1, max_size=2))
    price = st.fixed_dictionaries(
        {"input_per_million": prices, "output_per_million": prices}, optional={"currency": st.just("EUR")}
    )
    tools = [draw(http_tools(name)) for name in draw(st.lists(tool_names, max_size=2, unique=True))]
    listed = st.lists(st.sampled_from([tool["name"] for tool in tools]), unique=True) if tools else st.just([])
    model = st.fixed_dictionaries(
        {"name": names, "upstream": st.sampled_from(sorted(upstreams))},
        optional={"upstream_model": names, "price": price, "tools": listed},
    )
    models = draw(st.lists(model, max_size=2, unique_by=lambda entry: entry["name"]))
    if models and models[0]["name"] != "*":
        agent = {"name": "an-agent", "kind": "agent", "model": models[0]["name"], "tools": draw(listed)}
        tools.append(agent | draw(st.fixed_dictionaries({}, optional={"instructions": names, "timeout_s": seconds})))
    limits: dict[str, Any] = {}
    for field in attrs.fields(Limits):
        if field.name not in RULED and draw(st.booleans()):
            kind = st.integers if isinstance(field.default, int) else st.floats
            limits[field.name] = draw(kind(field.metadata["minimum"], field.metadata["maximum"]))
    return {
        "host": draw(st.sampled_from(["127.0.0.1", "::1"])),
        "port": draw(st.integers(0, 65535)),
        "workers": draw(st.integers(1, WORKERS_MAX)),
        "data_dir": draw(names),
        "auth": {"mode": draw(st.sampled_from(["keys", "none"]))},
        "log_level": draw(st.sampled_from(["debug", "info", "warning", "error"])),
        "flex_on_disconnect": draw(st.sampled_from(["continue", "cancel"])),
        "hosted_tools": draw(st.sampled_from(["refuse", "ignore"])),
        "http_server": draw(st.sampled_from(["direct", "hypercorn"])),
        "tracing": {"endpoint": draw(st.sampled_from([None, "http://localhost:4318", "https://otlp.example/otlp/"]))},
        "upstreams": upstreams,
        "models": models,
        "tools": tools,
        "limits": limits,
    }


@given(document=documents())
def test_what_is_shown_is_the_same_configuration_again(document: dict[str, Any]) -> None:
    config = parse_config(document)

    assert parse_config(yaml.safe_load(render(config))) == config
