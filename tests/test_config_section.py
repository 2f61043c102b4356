"""What a configuration is refused for, in which words, and that no secret is among them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from dwctl_trio.config import is_loopback, load_config, parse_config, render_config
from dwctl_trio.config.section import ConfigError
from dwctl_trio.domain.limits import Limits

CANARY = "c4n4ry"

HUGE = pytest.param(16**5000, id="more-digits-than-python-prints")

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


# -- what is refused


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"prot": 1}, "prot: unknown key; did you mean 'port'?"),
        ({"auth": {"mod": "keys"}}, "auth.mod: unknown key; did you mean 'auth.mode'?"),
        (with_upstream(api_kye="x"), "upstreams.local.api_kye: unknown key; did you mean 'upstreams.local.api_key'?"),
        (
            with_upstream(quirks={"developer_rule": True}),
            "upstreams.local.quirks.developer_rule: unknown key; did you mean 'upstreams.local.quirks.developer_role'?",
        ),
        (
            with_upstream(timeouts={"first_bite_s": 1}),
            "upstreams.local.timeouts.first_bite_s: unknown key; did you mean 'upstreams.local.timeouts.first_byte_s'?",
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
        (
            {"flex_on_disconnect": "stop"},
            "flex_on_disconnect: 'stop' is not allowed; allowed: continue, cancel",
        ),
        ({"log_level": "loud"}, "log_level: 'loud' is not allowed; allowed: debug, info, warning, error"),
        ({"models": {"gpt": 1}}, "models: expected a list, but got a mapping"),
        ({"models": False}, "models: expected a list, but got False"),
        ({"models": ["gpt"]}, "models[0]: expected a mapping of keys, but got a string"),
        ({"models": [None]}, "models[0].name: is required"),
        (with_model(tools=["a"]), "models[0].tools: 'a' is not a tool; allowed: none is defined"),
        (with_model(tools="a"), "models[0].tools: expected a list of tool names, but got 'a'"),
        (with_model(tools=[1]), "models[0].tools: expected a list of tool names, each a string"),
        (with_model(upstream="x"), "models[0].upstream: 'x' is not an upstream; allowed: local"),
        (
            {"models": [{"name": "a", "upstream": "b"}]},
            "models[0].upstream: 'b' is not an upstream; allowed: none is defined",
        ),
        ({**SMALL, "models": [*SMALL["models"], *SMALL["models"]]}, "models[1].name: 'gpt-4o' stands twice"),
        ({"upstreams": {"a": {}}}, "upstreams.a.base_url: is required"),
        (
            with_upstream(max_concurrency=0),
            "upstreams.local.max_concurrency: expected an integer from 1 to 100000, but got 0",
        ),
        (
            with_upstream(quirks={"drop": "user"}),
            "upstreams.local.quirks.drop: expected a list of field names, but got 'user'",
        ),
        (
            with_upstream(quirks={"drop": [1]}),
            "upstreams.local.quirks.drop: expected a list of field names, each a string",
        ),
        (
            with_upstream(quirks={"stream_usage": 1}),
            "upstreams.local.quirks.stream_usage: expected true or false, but got 1",
        ),
        (
            with_upstream(timeouts={"chunk_s": 0}),
            "upstreams.local.timeouts.chunk_s: expected seconds, above 0 and up to 86400, but got 0",
        ),
        (with_upstream(headers={"X Team": "a"}), "upstreams.local.headers.X Team: is not the name of an HTTP header"),
        (with_upstream(headers={"X-Team": ""}), "upstreams.local.headers.X-Team: must not be empty"),
        (with_model(price={"input_per_million": 1}), "models[0].price.output_per_million: is required"),
        (
            with_model(price={"input_per_million": -1, "output_per_million": 1}),
            (
                "models[0].price.input_per_million: "
                "expected a price from 0 to 1000000 with at most 12 decimals, but got -1"
            ),
        ),
        ({"limits": {"turns": 1.5}}, "limits.turns: expected an integer from 1 to 1000, but got 1.5"),
        ({"limits": {"keep_alive_s": "5"}}, "limits.keep_alive_s: expected a number from 0.05 to 300.0, but got '5'"),
        (
            {"limits": {"lease_give_up_s": 9.5}},
            (
                "limits: expected lease_renewal_s < lease_give_up_s, but got 10 and 9.5: "
                "a process must try to renew before it gives up"
            ),
        ),
        (
            {"limits": {"lease_s": 15}},
            (
                "limits: expected lease_give_up_s < lease_s, but got 20 and 15: "
                "a process must stop its attempts before others may take them"
            ),
        ),
        (
            {"limits": {"store_wait_s": 12, "store_call_s": 8}},
            (
                "limits: expected lease_renewal_s + store_wait_s + store_call_s < lease_s, but got 10 + 12 + 8 and 30: "
                "a renewal that waits for a connection and for its answer must still come in time"
            ),
        ),
        (
            {"limits": {"terminal_write_s": 1, "terminal_retry_s": 1}},
            (
                "limits: expected terminal_retry_s < terminal_write_s, but got 1 and 1: "
                "a terminal write that failed must be tried again"
            ),
        ),
        (
            with_upstream(base_url="https://models.example/v1/chat/completions/"),
            "upstreams.local.base_url: leave out /chat/completions at the end: the server adds it itself",
        ),
        *(
            (
                with_upstream(quirks={"drop": ["user", field]}),
                f"upstreams.local.quirks.drop: '{field}' cannot be dropped: no call works without it",
            )
            for field in ("messages", "model", "stream")
        ),
        (with_model(name="m" * 257), "models[0].name: expected at most 256 characters, but got 257"),
        (
            with_model(upstream_model="m" * 257),
            "models[0].upstream_model: expected at most 256 characters, but got 257",
        ),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(document: dict[str, Any], expected: str) -> None:
    assert error_of(document) == expected


@pytest.mark.parametrize(
    "base_url",
    [
        *(
            "127.0.0.1:8000/v1",
            "ftp://a/v1",
            "http://",
            "http:///v1",
            "http://a:b/v1",
            "http://a:0/v1",
            "http://a:70000/v1",
        ),
        *("http://[::1/v1", "http://a b/v1", "http://a\n/v1", "http://a/v1?version=1", "http://a/v1#x", "http://a/v1?"),
    ],
)
def test_a_base_url_that_nothing_can_be_added_to_is_refused(base_url: str) -> None:
    message = error_of(with_upstream(base_url=base_url))

    assert message.startswith("upstreams.local.base_url: expected http://host[:port]/v1 or https://…, but got ")


@pytest.mark.parametrize("base_url", ["http://a/v1/", " http://a/v1 ", "http://a/v1"])
def test_a_base_url_is_kept_without_what_surrounds_it(base_url: str) -> None:
    assert parse_config(with_upstream(base_url=base_url)).upstreams[0].base_url == "http://a/v1"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a/b",
        "db.example",
        "host=a password=b",
        "postgresql://",
        "postgresql://[::1/db",
        "postgresql://h:x/d",
        "postgresql://h:1,i:x/d",
        "postgresql://h/d?sslmode=x",
    ],
)
def test_a_database_url_that_is_none_is_refused(url: str) -> None:
    assert error_of({"database_url": url}).startswith("database_url: expected postgresql://user:password@host/name")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "postgresql://h/d",
            "postgres://u:p@h:5432/d?sslmode=require",
            "postgresql://[::1]:5432/d",
            "postgresql://a,b:1/d",
        ),
        *("postgresql:///d?host=/run/postgresql", "postgresql://u:p%40@h/d?application_name=x", "postgresql://u@"),
    ],
)
def test_a_database_url_may_be_whatever_postgresql_understands(url: str) -> None:
    assert parse_config({"database_url": url}).database_url == url


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


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.example.com", "127.0.0.1.nip.io"]
)
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
        ("port: 1\nhost: a\nport: 2", "is not valid YAML: line 3, column 1: the key 'port' stands twice"),
        ("auth: {mode: keys, mode: none}", "is not valid YAML: line 1, column 20: the key 'mode' stands twice"),
        ("{? [a] : 1}", "is not valid YAML: line 1, column 4: found unhashable key"),
        ("[1]", "expected a mapping of keys, but got a list"),
        ("just words", "expected a mapping of keys, but got a string"),
        ("a: &a {b: *a}", "a mapping or list contains itself"),
        ("[" * 1000, "is not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(path, {})

    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_part_that_is_written_once_may_be_used_twice(tmp_path: Path) -> None:
    text = """
    upstreams:
      first: &common {base_url: "http://a/v1", max_concurrency: 3}
      second: {<<: *common, base_url: "http://b/v1"}
    """

    first, second = load_config(write(tmp_path, text), {}).upstreams

    assert (first.base_url, second.base_url) == ("http://a/v1", "http://b/v1")
    assert first.max_concurrency == second.max_concurrency == 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file or directory"):
        load_config(tmp_path / "gone.yaml", {})


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"config\.yaml: is not valid YAML"):
        load_config(path, {})


# -- secrets


PLANTED = [
    with_upstream(api_key=f"sk-{CANARY}"),
    with_upstream(headers={"X-Key": CANARY}),
    with_upstream(base_url=f"https://user:{CANARY}@models.example/v1"),
    with_upstream(base_url=f"https://{CANARY}@models.example/v1"),
    {"database_url": f"postgresql://dwctl:{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql://db.example/dwctl?user=dwctl&password={CANARY}"},
    {"database_url": f"postgresql://db.example/dwctl?password={CANARY}@x"},
    {"database_url": f"postgresql://dwctl:p@{CANARY}@db.example/dwctl"},
    {"database_url": f"postgresql:///dwctl?password={CANARY}"},
]


@pytest.mark.parametrize("document", PLANTED, ids=str)
def test_a_secret_is_nowhere_in_what_is_shown(document: dict[str, Any]) -> None:
    shown = render_config(parse_config(document))

    assert CANARY not in shown
    assert "***" in shown


def test_a_secret_from_the_environment_is_nowhere_in_what_is_shown(tmp_path: Path) -> None:
    upstream = "{base_url: 'http://u:${P}@h/v1', api_key: '${P}', headers: {X: '${P}'}}"
    text = f"{{database_url: 'postgresql://u:${{P}}@h/d', upstreams: {{a: {upstream}}}}}"

    shown = render_config(
        load_config(write(tmp_path, text), {"P": CANARY, "DWCTL_UPSTREAMS__B__BASE_URL": f"http://{CANARY}@b/v1"})
    )

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
        {"database_url": f"postgresql://dwctl:a/{CANARY}@db.example/dwctl"},
        {"database_url": f"postgresql://dwctl:a?{CANARY}@db.example/dwctl"},
        {"database_url": f"postgresql://{CANARY}:a#b@db.example/dwctl"},
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
