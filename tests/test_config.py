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

from dwctl_trio.config import Config, UpstreamConfig, UpstreamTimeouts, is_loopback, load_config, parse_config
from dwctl_trio.config import render_config as render
from dwctl_trio.config_section import ConfigError
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.models import ModelRoute, Price
from dwctl_trio.protocol.chat_completions import Quirks

CANARY = "c4n4ry"

HUGE = pytest.param(16**5000, id="more-digits-than-python-prints")

EVERY_KEY = """
host: 127.0.0.2
port: 4001
database_url: postgresql://dwctl:secret@db.example/dwctl
data_dir: /tmp/elsewhere
auth: {mode: none}
upstreams:
  local:
    base_url: "http://127.0.0.1:8000/v1"
    api_key: "${LOCAL_KEY}"
    max_concurrency: 7
    quirks: {drop: [user], rename: {max_tokens: max_completion_tokens}, developer_role: false, stream_usage: false}
    headers: {X-Team: "blue ${TEAM}"}
    timeouts: {connect_s: 1, first_byte_s: 2.5, chunk_s: 3, total_s: 4}
models:
  - {name: gpt-4o, upstream: local, upstream_model: Qwen3-32B,
     price: {input_per_million: 0.15, output_per_million: "0.60", currency: EUR}, tools: []}
  - {name: "*", upstream: local}
tools: []
limits: {turns: 3, keep_alive_s: 5}
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


def error_of(document: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    return str(caught.value)


def with_upstream(**keys: Any) -> dict[str, Any]:
    return {"upstreams": {"local": {"base_url": "http://127.0.0.1:8000/v1", **keys}}}


def with_model(**keys: Any) -> dict[str, Any]:
    return {**SMALL, "models": [{"name": "gpt-4o", "upstream": "local", **keys}]}


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    environment = {"LOCAL_KEY": "sk-1", "TEAM": "whale"}

    config = load_config(write(tmp_path, EVERY_KEY), environment)

    price = Price(input_per_million=Decimal("0.15"), output_per_million=Decimal("0.60"), currency="EUR")
    assert config == Config(
        host="127.0.0.2",
        port=4001,
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
                ),
                headers=(("X-Team", "blue whale"),),
                timeouts=UpstreamTimeouts(connect_s=1.0, first_byte_s=2.5, chunk_s=3.0, total_s=4.0),
            ),
        ),
        models=(
            ModelRoute(model="gpt-4o", upstream="local", upstream_model="Qwen3-32B", price=price),
            ModelRoute(model="*", upstream="local", upstream_model="*"),
        ),
        limits=attrs.evolve(DEFAULT_LIMITS, turns=3, keep_alive_s=5.0),
        log_level="debug",
    )


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(None, {}) == Config()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n"), {}) == Config()


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
    keys = dict.fromkeys(["api_key", "max_concurrency", "quirks", "headers", "timeouts"])
    flags = {"quirks": {"developer_role": None, "stream_usage": None, "drop": None, "rename": None}}

    assert parse_config(with_upstream(**keys)) == parse_config(with_upstream())
    assert parse_config(with_upstream(**flags)) == parse_config(with_upstream())


# -- the environment


OVERRIDES: list[tuple[str, str, str, Any]] = [
    ("DWCTL_HOST", "127.0.0.9", "host", "127.0.0.9"),
    ("DWCTL_PORT", "4002", "port", 4002),
    ("DWCTL_DATABASE_URL", "postgresql://other/db", "database_url", "postgresql://other/db"),
    ("DWCTL_DATA_DIR", "/tmp/third", "data_dir", Path("/tmp/third")),
    ("DWCTL_AUTH__MODE", "keys", "auth_mode", "keys"),
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
    others = {"lease_s": "600", "lease_give_up_s": "300", "lease_renewal_s": "100"}
    values = others | {field.name: str(minimum)}
    if field.name in {"lease_s", "lease_give_up_s"}:  # the three are in order
        values = {"lease_s": "2", "lease_give_up_s": "1", "lease_renewal_s": "0.5", field.name: str(minimum)}
        minimum = values[field.name] = {"lease_s": 2.0, "lease_give_up_s": minimum}[field.name]
        values["lease_renewal_s"] = "0.2"
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
    config = load_config(None, {"DWCTL_HOST": "127.0.0.3", "DWCTL_PORT": "1"}, host="127.0.0.4", port=0)

    assert (config.host, config.port) == ("127.0.0.4", 0)


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


# -- what is refused


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"prot": 1}, "prot: unknown key; did you mean 'port'?"),
        ({"auth": {"mod": "keys"}}, "auth.mod: unknown key; did you mean 'auth.mode'?"),
        (with_upstream(api_kye="x"), "upstreams.local.api_kye: unknown key; did you mean 'upstreams.local.api_key'?"),
        (
            with_upstream(quirks={"developer_rule": True}),
            "upstreams.local.quirks.developer_rule: unknown key; "
            "did you mean 'upstreams.local.quirks.developer_role'?",
        ),
        (
            with_upstream(timeouts={"first_bite_s": 1}),
            "upstreams.local.timeouts.first_bite_s: unknown key; "
            "did you mean 'upstreams.local.timeouts.first_byte_s'?",
        ),
        (with_model(upstreem="x"), "models[0].upstreem: unknown key; did you mean 'models[0].upstream'?"),
        (
            with_model(price={"input_per_milion": 1}),
            "models[0].price.input_per_milion: unknown key; did you mean 'models[0].price.input_per_million'?",
        ),
        ({"limits": {"turn": 1}}, "limits.turn: unknown key; did you mean 'limits.turns'?"),
        ({"auth": {"zzz": 1}}, "auth.zzz: unknown key; known keys: mode"),
        ({7: 1}, "7: a key must be a string"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(document: dict[str, Any], expected: str) -> None:
    assert error_of(document) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"host": 1}, "host: expected a string, but got 1"),
        ({"host": " "}, "host: must not be empty"),
        ({"port": 65536}, "port: expected an integer from 0 to 65535, but got 65536"),
        ({"port": True}, "port: expected an integer from 0 to 65535, but got True"),
        ({"port": "3001"}, "port: expected an integer from 0 to 65535, but got '3001'"),
        ({"auth": {"mode": "off"}}, "auth.mode: 'off' is not allowed; allowed: keys, none"),
        ({"auth": "none"}, "auth: expected a mapping of keys, but got a string"),
        ({"log_level": "loud"}, "log_level: 'loud' is not allowed; allowed: debug, info, warning, error"),
        ({"models": {"gpt": 1}}, "models: expected a list, but got a mapping"),
        ({"models": False}, "models: expected a list, but got False"),
        ({"models": ["gpt"]}, "models[0]: expected a mapping of keys, but got a string"),
        ({"models": [None]}, "models[0].name: is required"),
        ({"tools": [{"name": "a"}]}, "tools: server tools are not available in this release; remove the key"),
        (with_model(tools=["a"]), "models[0].tools: server tools are not available in this release; remove the key"),
        (with_model(upstream="x"), "models[0].upstream: 'x' is not an upstream; allowed: local"),
        ({"models": [{"name": "a", "upstream": "b"}]}, "models[0].upstream: 'b' is not an upstream; allowed: none is defined"),
        ({**SMALL, "models": [*SMALL["models"], *SMALL["models"]]}, "models[1].name: 'gpt-4o' stands twice"),
        ({"upstreams": {"a": {}}}, "upstreams.a.base_url: is required"),
        (with_upstream(max_concurrency=0), "upstreams.local.max_concurrency: expected an integer from 1 to 100000, but got 0"),
        (with_upstream(quirks={"drop": "user"}), "upstreams.local.quirks.drop: expected a list of field names, but got 'user'"),
        (with_upstream(quirks={"drop": [1]}), "upstreams.local.quirks.drop: expected a list of field names, each a string"),
        (with_upstream(quirks={"stream_usage": 1}), "upstreams.local.quirks.stream_usage: expected true or false, but got 1"),
        (
            with_upstream(timeouts={"chunk_s": 0}),
            "upstreams.local.timeouts.chunk_s: expected seconds, above 0 and up to 86400, but got 0",
        ),
        (with_upstream(headers={"X Team": "a"}), "upstreams.local.headers.X Team: is not the name of an HTTP header"),
        (with_upstream(headers={"X-Team": ""}), "upstreams.local.headers.X-Team: must not be empty"),
        (with_model(price={"input_per_million": 1}), "models[0].price.output_per_million: is required"),
        (
            with_model(price={"input_per_million": -1, "output_per_million": 1}),
            "models[0].price.input_per_million: expected a price from 0 to 1000000 with at most 12 decimals, but got -1",
        ),
        ({"limits": {"turns": 1.5}}, "limits.turns: expected an integer from 1 to 1000, but got 1.5"),
        ({"limits": {"keep_alive_s": "5"}}, "limits.keep_alive_s: expected a number from 0.05 to 300.0, but got '5'"),
        ({"limits": {"lease_s": 15}}, "limits: expected lease_renewal_s < lease_give_up_s < lease_s"),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(document: dict[str, Any], expected: str) -> None:
    assert error_of(document) == expected


@pytest.mark.parametrize(
    "base_url",
    [
        *("127.0.0.1:8000/v1", "ftp://a/v1", "http://", "http:///v1", "http://a:b/v1", "http://a:0/v1", "http://a:70000/v1"),
        *("http://[::1/v1", "http://a b/v1", "http://a\n/v1", "http://a/v1?version=1", "http://a/v1#x", "http://a/v1?"),
    ],
)
def test_a_base_url_that_nothing_can_be_added_to_is_refused(base_url: str) -> None:
    message = error_of(with_upstream(base_url=base_url))

    assert message.startswith("upstreams.local.base_url: expected http://host[:port]/v1 or https://…, but got ")


@pytest.mark.parametrize("base_url", ["http://a/v1/", " http://a/v1 ", "http://a/v1"])
def test_a_base_url_is_kept_without_what_surrounds_it(base_url: str) -> None:
    assert parse_config(with_upstream(base_url=base_url)).upstreams[0].base_url == "http://a/v1"


@pytest.mark.parametrize("url", ["mysql://a/b", "db.example", "host=a password=b", "postgresql://", "postgresql://[::1/db"])
def test_a_database_url_that_is_none_is_refused(url: str) -> None:
    assert error_of({"database_url": url}).startswith("database_url: expected postgresql://user:password@host/name")


@pytest.mark.parametrize("price", [True, [], "much", "nan", "inf", "1e-13", 10**7, HUGE, -0.01])
def test_a_price_that_the_usage_report_cannot_count_with_is_refused(price: object) -> None:
    document = with_model(price={"input_per_million": price, "output_per_million": 1})

    assert error_of(document).startswith("models[0].price.input_per_million: expected a price from 0 to 1000000")


@pytest.mark.parametrize("field", attrs.fields(Limits), ids=lambda field: field.name)
@pytest.mark.parametrize("side", ["minimum", "maximum"])
def test_a_limit_out_of_its_bounds_is_named_with_them(field: Any, side: str) -> None:
    bound = field.metadata[side]
    value = bound - 1 if side == "minimum" else bound + 1

    message = error_of({"limits": {field.name: value}})

    low, high = field.metadata["minimum"], field.metadata["maximum"]
    noun = "an integer" if isinstance(field.default, int) else "a number"
    assert message == f"limits.{field.name}: expected {noun} from {low} to {high}, but got {value}"


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), 10**400, HUGE, "1", [1]])
def test_a_limit_is_a_plain_number(value: object) -> None:
    assert error_of({"limits": {"keep_alive_s": value}}).startswith("limits.keep_alive_s: expected a number from 0.05")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_without_keys_the_server_listens_to_this_machine_only(host: str) -> None:
    assert is_loopback(host)
    assert parse_config({"auth": {"mode": "none"}, "host": host}).auth_mode == "none"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.example.com", "127.0.0.1.nip.io"])
def test_no_keys_on_an_address_that_others_can_reach_is_refused(host: str) -> None:
    assert error_of({"auth": {"mode": "none"}, "host": host}) == (
        f"auth.mode: 'none' is allowed on a loopback address only, and host is {host!r}; "
        "use auth.mode: keys, or host: 127.0.0.1"
    )


def test_the_host_of_the_command_line_cannot_slip_past_that_rule() -> None:
    with pytest.raises(ConfigError, match=r"^auth\.mode: "):
        load_config(None, {"DWCTL_AUTH__MODE": "none"}, host="0.0.0.0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not valid YAML: line 1, column 5: "),
        ("port: 2001-99-99", "is not valid YAML: month must be in 1..12"),
        ("[1]", "expected a mapping of keys, but got a list"),
        ("just words", "expected a mapping of keys, but got a string"),
        ("a: &a {b: *a}", "a mapping or list contains itself"),
        ("[" * 5000, "is not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(path, {})

    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file or directory"):
        load_config(tmp_path / "gone.yaml", {})


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"config\.yaml: is not valid YAML"):
        load_config(path, {})


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


# -- secrets


PLANTED = [
    with_upstream(api_key=f"sk-{CANARY}"),
    with_upstream(headers={"X-Key": CANARY}),
    with_upstream(base_url=f"https://user:{CANARY}@models.example/v1"),
    with_upstream(base_url=f"https://{CANARY}@models.example/v1"),
    {"database_url": f"postgresql://dwctl:{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql://db.example/dwctl?user=dwctl&password={CANARY}"},
    {"database_url": f"postgresql://db.example/dwctl?password={CANARY}@x"},
    {"database_url": f"postgresql://dwctl:a/{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql://dwctl:a?{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql://{CANARY}:a#b@db.example/dwctl"},
    {"database_url": f"postgresql://dwctl:p@{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql:///dwctl?password={CANARY}"},
]


@pytest.mark.parametrize("document", PLANTED, ids=str)
def test_a_secret_is_nowhere_in_what_is_shown(document: dict[str, Any]) -> None:
    shown = render(parse_config(document))

    assert CANARY not in shown
    assert "***" in shown


def test_a_secret_from_the_environment_is_nowhere_in_what_is_shown(tmp_path: Path) -> None:
    text = "{database_url: 'postgresql://u:${P}@h/d', upstreams: {a: {base_url: 'http://u:${P}@h/v1', api_key: '${P}', headers: {X: '${P}'}}}}"

    shown = render(load_config(write(tmp_path, text), {"P": CANARY, "DWCTL_UPSTREAMS__B__BASE_URL": f"http://{CANARY}@b/v1"}))

    assert CANARY not in shown
    assert shown.count("***") == 5


@pytest.mark.parametrize(
    "document",
    [
        with_upstream(api_key=[CANARY]),
        with_upstream(api_key={CANARY: 1}),
        with_upstream(api_key=f"{CANARY}\n"),
        with_upstream(api_key=f"{CANARY}é"),
        with_upstream(headers={"X-Key": f"{CANARY}\r\nX-Other: 1"}),
        with_upstream(headers={"X-Key": [CANARY]}),
        with_upstream(headers=CANARY),
        with_upstream(base_url=f"htp://user:{CANARY}@models.example/v1"),
        with_upstream(base_url=f"user:{CANARY}@models.example/v1"),
        with_upstream(base_url=f"http://models.example/v1?key={CANARY}"),
        with_upstream(base_url=f"http://[{CANARY}@models.example/v1"),
        {"upstreams": [{"api_key": CANARY}]},
        {"upstreams": {"local": f"https://user:{CANARY}@models.example/v1"}},
        {"database_url": f"mysql://dwctl:{CANARY}@db.example/dwctl"},
        {"database_url": f"host=db.example password={CANARY}"},
        {"database_url": [CANARY]},
    ],
    ids=str,
)
def test_a_secret_is_nowhere_in_an_error(document: dict[str, Any]) -> None:
    assert CANARY not in error_of(document)


def test_a_secret_is_nowhere_in_an_error_about_the_yaml_around_it(tmp_path: Path) -> None:
    path = write(tmp_path, f"upstreams: {{a: {{api_key: {CANARY}, base_url: [}}}}")

    with pytest.raises(ConfigError) as in_file:
        load_config(path, {})
    with pytest.raises(ConfigError) as in_variable:
        load_config(None, {"DWCTL_UPSTREAMS__A__API_KEY": f"*{CANARY}"})

    assert CANARY not in f"{in_file.value}{in_variable.value}"


# -- properties


names = st.text(string.ascii_letters + string.digits + "-_. :*é\u2028", min_size=1, max_size=8).filter(str.strip)
numbers = st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
known_names = st.sampled_from(
    [
        *("host", "port", "database_url", "data_dir", "auth", "upstreams", "models", "tools", "limits", "log_level"),
        *("mode", "base_url", "api_key", "max_concurrency", "quirks", "headers", "timeouts", "drop", "rename"),
        *("developer_role", "stream_usage", "connect_s", "name", "upstream", "upstream_model", "price", "turns"),
        *("input_per_million", "output_per_million", "currency", "keep_alive_s"),
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
                },
            ),
            "timeouts": st.dictionaries(st.sampled_from(["connect_s", "first_byte_s", "chunk_s", "total_s"]), seconds),
        },
    )
    upstreams = draw(st.dictionaries(names, upstream, min_size=1, max_size=2))
    price = st.fixed_dictionaries(
        {"input_per_million": prices, "output_per_million": prices}, optional={"currency": st.just("EUR")}
    )
    model = st.fixed_dictionaries(
        {"name": names, "upstream": st.sampled_from(sorted(upstreams))},
        optional={"upstream_model": names, "price": price},
    )
    limits: dict[str, Any] = {}
    for field in attrs.fields(Limits):
        if not field.name.startswith("lease_") and draw(st.booleans()):
            kind = st.integers if isinstance(field.default, int) else st.floats
            limits[field.name] = draw(kind(field.metadata["minimum"], field.metadata["maximum"]))
    return {
        "host": draw(st.sampled_from(["127.0.0.1", "::1"])),
        "port": draw(st.integers(0, 65535)),
        "data_dir": draw(names),
        "auth": {"mode": draw(st.sampled_from(["keys", "none"]))},
        "log_level": draw(st.sampled_from(["debug", "info", "warning", "error"])),
        "upstreams": upstreams,
        "models": draw(st.lists(model, max_size=2, unique_by=lambda entry: entry["name"])),
        "limits": limits,
    }


@given(document=documents())
def test_what_is_shown_is_the_same_configuration_again(document: dict[str, Any]) -> None:
    config = parse_config(document)

    assert parse_config(yaml.safe_load(render(config))) == config
