"""Reading the configuration: ``config.yaml``, overridden by ``DWCTL_*``, strict, as one frozen value.

Rule 1: a wrong value names its key, itself, and what is allowed; an unknown key names the nearest known one.
Rule 2: environment variables override the file: ``DWCTL_AUTH__MODE=none`` is ``auth.mode``; their values are YAML.
Rule 3: ``${VAR}`` inside a string of the file is that environment variable, which must be set.
Rule 4: no error repeats a secret.

Source: the outside contract of the design.
"""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from dwctl_trio.config.headers import parse_headers
from dwctl_trio.config.rules import check_whole
from dwctl_trio.config.section import ConfigError, Section, describe_kind, show
from dwctl_trio.config.tools import check_tool_names, parse_tools
from dwctl_trio.config.url import CHAT_PATH, is_base_url, is_database_url, mask_url
from dwctl_trio.config.values import Config, UpstreamConfig, UpstreamTimeouts
from dwctl_trio.config.yaml_document import decode_yaml
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import MODEL_CHARACTERS_MAX, ModelRoute, Price
from dwctl_trio.domain.rates import OwnerRates
from dwctl_trio.domain.tools import ToolCatalog
from dwctl_trio.protocol.chat_completions import Quirks
from dwctl_trio.protocol.request_options import EFFORTS

ENVIRONMENT_PREFIX = "DWCTL_"
WORKERS_MAX = 256
"""As many cores as the largest machines have."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_AUTH_MODES = ("keys", "none")
_FLEX_ON_DISCONNECT = ("continue", "cancel")
_HOSTED_TOOLS = ("refuse", "ignore")
_TRANSPORTS = ("direct", "httpx")
_HTTP_SERVERS = ("direct", "hypercorn")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_RATE_MAX = 1_000_000_000
"""A minute's worth of anything."""
_TRACING_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
_REASONING_HISTORIES = ("none", "reasoning_content", "reasoning")
_NEEDED_FIELDS = frozenset({"messages", "model", "stream"})
"""Of a call of an upstream: without them it would be another call."""


def load_config(
    path: Path | None,
    environment: Mapping[str, str] = os.environ,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
) -> Config:
    """The configuration in *path*, or the defaults, with *environment* on top, and then what is given besides.

    Raises:
        ConfigError: The file cannot be read or a value is wrong.
    """
    loaded: object = None
    if path is not None:
        try:
            loaded = decode_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, but got {describe_kind(loaded)}")
    try:
        document: dict[str, Any] = _expand(loaded or {}, environment, "")
    except RecursionError as error:
        raise ConfigError(f"{path}: a mapping or list contains itself") from error
    _override(document, environment)
    given = {"host": host, "port": port, "workers": workers}
    document |= {name: value for name, value in given.items() if value is not None}
    config = parse_config(document)
    if path is None:
        return config
    return attrs.evolve(config, data_dir=path.parent / config.data_dir)  # an absolute one stays as it is


def parse_config(document: Mapping[str, Any]) -> Config:
    """The configuration that *document*, as decoded from YAML, describes.

    Raises:
        ConfigError: A key is unknown, or a value is wrong.
    """
    top = Section(document, "")
    top.refuse_unknown(
        (
            "host",
            "port",
            "workers",
            "database_url",
            "data_dir",
            "auth",
            "upstreams",
            "models",
            "tools",
            "owners",
            "flex_on_disconnect",
            "hosted_tools",
            "http_server",
            "tracing",
            "limits",
            "log_level",
        )
    )
    auth = top.section("auth")
    auth.refuse_unknown(("mode",))
    models, limits = _parse_models(top), _parse_limits(top.section("limits"))
    tools = parse_tools(top, models, limits)
    config = Config(
        host=top.text("host", "127.0.0.1"),
        port=top.integer("port", 3001, minimum=0, maximum=65535),
        workers=top.integer("workers", 1, minimum=1, maximum=WORKERS_MAX),
        database_url=_parse_database_url(top),
        data_dir=Path(top.text("data_dir", ".dwctl")),
        auth_mode=auth.choice("mode", "keys", _AUTH_MODES),
        upstreams=_parse_upstreams(top.section("upstreams")),
        models=models,
        model_tools=_parse_model_tools(top, tools),
        tools=tools,
        limits=limits,
        owners=_parse_owners(top.section("owners")),
        flex_on_disconnect=top.choice("flex_on_disconnect", "continue", _FLEX_ON_DISCONNECT),
        hosted_tools=top.choice("hosted_tools", "refuse", _HOSTED_TOOLS),
        http_server=top.choice("http_server", "direct", _HTTP_SERVERS),
        tracing_endpoint=_parse_tracing(top.section("tracing")),
        log_level=top.choice("log_level", "info", _LOG_LEVELS),
    )
    check_whole(config)
    return config


def _parse_upstreams(section: Section) -> tuple[UpstreamConfig, ...]:
    return tuple(_parse_upstream(name, section.section(name)) for name in section.names())


def _parse_upstream(name: str, section: Section) -> UpstreamConfig:
    section.refuse_unknown(("base_url", "api_key", "max_concurrency", "quirks", "headers", "timeouts", "transport"))
    base_url = section.text("base_url").strip()
    if not is_base_url(base_url):
        section.fail("base_url", f"expected http://host[:port]/v1 or https://…, but got {show(mask_url(base_url))}")
    if base_url.rstrip("/").endswith(CHAT_PATH):
        section.fail("base_url", f"leave out {CHAT_PATH} at the end: the server adds it itself")
    timeouts = section.section("timeouts")
    timeouts.refuse_unknown(tuple(field.name for field in attrs.fields(UpstreamTimeouts)))
    return UpstreamConfig(
        name=name,
        base_url=base_url.rstrip("/"),
        api_key=section.optional_secret("api_key"),
        max_concurrency=section.integer("max_concurrency", 256, minimum=1, maximum=100_000),
        quirks=_parse_quirks(section.section("quirks")),
        headers=parse_headers(section.section("headers")),
        timeouts=UpstreamTimeouts(
            **{field.name: timeouts.seconds(field.name) for field in attrs.fields(UpstreamTimeouts)}
        ),
        transport=section.choice("transport", "direct", _TRANSPORTS),
    )


def _parse_database_url(top: Section) -> str | None:
    url = top.optional_text("database_url")
    if url is not None and not is_database_url(url):
        top.fail("database_url", f"expected postgresql://user:password@host/name, but got {show(mask_url(url))}")
    return url


def _parse_quirks(section: Section) -> Quirks:
    flags = ("developer_role", "stream_usage", "named_tool_choice")
    section.refuse_unknown(("drop", "rename", *flags, "reasoning_history", "efforts"))
    drop = section.items("drop", "a list of field names")
    if not all(isinstance(field, str) for field in drop):
        section.fail("drop", "expected a list of field names, each a string")
    needed = [field for field in drop if field in _NEEDED_FIELDS]
    if needed:
        section.fail("drop", f"{show(needed[0])} cannot be dropped: no call works without it")
    rename, efforts = section.section("rename"), section.section("efforts")
    efforts.refuse_unknown(EFFORTS)
    reasoning_history = section.choice("reasoning_history", "none", _REASONING_HISTORIES)
    return Quirks(
        drop=frozenset(drop),
        rename=tuple((field, rename.text(field)) for field in rename.names()),
        developer_role=section.flag("developer_role", default=True),
        stream_usage=section.flag("stream_usage", default=True),
        named_tool_choice=section.flag("named_tool_choice", default=True),
        reasoning_history=None if reasoning_history == "none" else reasoning_history,
        efforts=tuple((effort, efforts.text(effort)) for effort in efforts.names()),
    )


def _parse_models(top: Section) -> tuple[ModelRoute, ...]:
    entries = top.items("models")
    return tuple(_parse_model(Section(entry, f"models[{index}]")) for index, entry in enumerate(entries))


def _parse_model(section: Section) -> ModelRoute:
    section.refuse_unknown(("name", "upstream", "upstream_model", "price", "tools", "queue_concurrency"))
    name = _parse_model_name(section, "name")
    return ModelRoute(
        model=name,
        upstream=section.text("upstream"),
        upstream_model=_parse_model_name(section, "upstream_model", name),
        price=_parse_price(section.section("price")) if section.get("price") is not None else None,
        queue_concurrency=section.integer("queue_concurrency", 0, minimum=0, maximum=1_000_000) or None,
    )


def _parse_model_name(section: Section, key: str, default: str | None = None) -> str:
    name = section.text(key, default)
    if len(name) > MODEL_CHARACTERS_MAX:
        section.fail(key, f"expected at most {MODEL_CHARACTERS_MAX} characters, but got {len(name)}")
    return name


def _parse_model_tools(top: Section, tools: ToolCatalog) -> dict[str, tuple[str, ...]]:
    named = {}
    for index, entry in enumerate(top.items("models")):
        section = Section(entry, f"models[{index}]")
        if names := section.words("tools", "tool names"):
            check_tool_names(section.key("tools"), names, tools)
            named[section.text("name")] = names
    return named


def _parse_price(section: Section) -> Price:
    section.refuse_unknown(("input_per_million", "output_per_million", "currency"))
    return Price(
        input_per_million=section.price("input_per_million"),
        output_per_million=section.price("output_per_million"),
        currency=section.text("currency", "USD"),
    )


def _parse_owners(section: Section) -> tuple[tuple[str, OwnerRates], ...]:
    return tuple((name, _parse_rates(section.section(name))) for name in section.names())


def _parse_rates(section: Section) -> OwnerRates:
    names = tuple(field.name for field in attrs.fields(OwnerRates))
    section.refuse_unknown(names)
    given = [name for name in names if section.get(name) is not None]
    return OwnerRates(**{name: section.integer(name, 1, minimum=1, maximum=_RATE_MAX) for name in given})


def _parse_tracing(section: Section) -> str | None:
    section.refuse_unknown(("endpoint",))
    endpoint = section.optional_text("endpoint")
    if endpoint is None:
        return None
    if not is_base_url(endpoint) or "@" in endpoint:
        section.fail(
            "endpoint",
            f"expected http://host[:port] or https://… without user and password, but got {show(mask_url(endpoint))}; "
            "a key of the collector goes into the environment variable OTEL_EXPORTER_OTLP_HEADERS",
        )
    if not all(_is_installed(module) for module in _TRACING_MODULES):
        section.fail("endpoint", "needs OpenTelemetry, which is not installed; run: pip install 'dwctl-trio[tracing]'")
    return endpoint.rstrip("/")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _parse_limits(section: Section) -> Limits:
    fields = attrs.fields(Limits)
    section.refuse_unknown(tuple(field.name for field in fields))
    values: dict[str, Any] = {}
    for field in fields:
        value = section.get(field.name)
        if value is None:
            continue
        is_whole, low, high = isinstance(field.default, int), field.metadata["minimum"], field.metadata["maximum"]
        is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            noun = "an integer" if is_whole else "a number"
            section.fail(field.name, f"expected {noun} from {low} to {high}, but got {show(value)}")
        values[field.name] = value if is_whole else float(value)
    return Limits(**values)


def _expand(value: Any, environment: Mapping[str, str], path: str) -> Any:
    """*value* with every ``${VAR}`` in its strings replaced."""
    if isinstance(value, dict):
        return {key: _expand(item, environment, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, environment, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ConfigError(f"{path}: the environment variable {found[1]} is not set")
        return environment[found[1]]

    return _VARIABLE.sub(replace, value)


def _override(document: dict[str, Any], environment: Mapping[str, str]) -> None:
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        try:
            value = decode_yaml(environment[variable])
        except ValueError as error:
            raise ConfigError(f"{variable}: is not valid YAML; put the value in quotes") from error
        *outer, last = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        section = document
        for key in outer:
            name = _spelling_in(section, key)
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise ConfigError(f"{variable}: {key!r} is not a mapping of keys; give its whole value as YAML instead")
        section[_spelling_in(section, last)] = value


def _spelling_in(section: Mapping[str, Any], key: str) -> str:
    """*key* as *section* spells it already: variables know neither case nor hyphens."""
    for known in section:
        if isinstance(known, str) and known.lower().replace("-", "_") == key:
            return known
    return key
