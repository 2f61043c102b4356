"""The configuration: ``config.yaml``, overridden by ``DWCTL_*``, strict, as one frozen value.

Rule 1: a wrong value names its key, itself, and what is allowed; an unknown key names the nearest known one.
Rule 2: environment variables override the file: ``DWCTL_AUTH__MODE=none`` is ``auth.mode``; their values are YAML.
Rule 3: ``${VAR}`` inside a string of the file is that environment variable, which must be set.
Rule 4: ``render_config`` masks every secret: keys, headers, and what is before the ``@`` of a URL.

Source: the outside contract of the design.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import yaml

from dwctl_trio.config_section import ConfigError, Section
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.models import ModelRoute, Price
from dwctl_trio.protocol.chat_completions import DEFAULT_QUIRKS, Quirks

ENVIRONMENT_PREFIX = "DWCTL_"
MASK = "***"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_AUTH_MODES = ("keys", "none")
_ANY_MODEL = "*"


@attrs.frozen(kw_only=True)
class UpstreamTimeouts:
    """Where one upstream's times differ from ``limits``; None: they do not."""

    connect_s: float | None = None
    first_byte_s: float | None = None
    chunk_s: float | None = None
    total_s: float | None = None


@attrs.frozen(kw_only=True)
class UpstreamConfig:
    """One chat-completions server."""

    name: str
    base_url: str
    """Up to and with ``/v1``; ``/chat/completions`` is added."""
    api_key: str | None = None
    max_concurrency: int = 256
    """Calls under way at once."""
    quirks: Quirks = DEFAULT_QUIRKS
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every call."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()


@attrs.frozen(kw_only=True)
class Config:
    """Everything an operator can set."""

    host: str = "127.0.0.1"
    port: int = 3001
    """The original's."""
    database_url: str | None = None
    """None: embedded PostgreSQL under ``data_dir``."""
    data_dir: Path = Path(".dwctl")
    auth_mode: str = "keys"
    upstreams: tuple[UpstreamConfig, ...] = ()
    models: tuple[ModelRoute, ...] = ()
    """In the file's order; a route named ``*`` serves any other name."""
    limits: Limits = DEFAULT_LIMITS
    log_level: str = "info"

    def find_route(self, model: str) -> ModelRoute | None:
        """Where calls for *model* go, or None if no route serves it."""
        for route in self.models:
            if route.model == model:
                return route
        for route in self.models:
            if route.model == _ANY_MODEL:
                return attrs.evolve(route, model=model, upstream_model=model)
        return None


def load_config(
    path: Path | None,
    environment: Mapping[str, str] = os.environ,
    *,
    host: str | None = None,
    port: int | None = None,
) -> Config:
    """The configuration in *path*, or the defaults, with *environment* on top, and *host* and *port* on top of that.

    Raises:
        ConfigError: The file cannot be read or a value is wrong.
    """
    loaded: object = None
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, but got {loaded!r}")
    document: dict[str, Any] = _expand(loaded or {}, environment, "")
    _override(document, environment)
    document |= {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    return parse_config(document)


def parse_config(document: Mapping[str, Any]) -> Config:
    """The configuration that *document*, as decoded from YAML, describes.

    Raises:
        ConfigError: A key is unknown, or a value is wrong.
    """
    top = Section(document, "")
    top.refuse_unknown(
        ("host", "port", "database_url", "data_dir", "auth", "upstreams", "models", "tools", "limits", "log_level")
    )
    if top.get("tools"):
        top.fail("tools", "server tools are not available in this release; remove the key")
    auth = top.section("auth")
    auth.refuse_unknown(("mode",))
    config = Config(
        host=top.text("host", "127.0.0.1"),
        port=top.integer("port", 3001, minimum=0, maximum=65535),
        database_url=top.optional_text("database_url"),
        data_dir=Path(top.text("data_dir", ".dwctl")),
        auth_mode=auth.choice("mode", "keys", _AUTH_MODES),
        upstreams=_parse_upstreams(top.section("upstreams")),
        models=_parse_models(top),
        limits=_parse_limits(top.section("limits")),
        log_level=top.choice("log_level", "info", ("debug", "info", "warning", "error")),
    )
    _check_whole(config)
    return config


def _check_whole(config: Config) -> None:
    """What no single key can tell."""
    names = {upstream.name for upstream in config.upstreams}
    seen: set[str] = set()
    for index, route in enumerate(config.models):
        if route.upstream not in names:
            allowed = ", ".join(sorted(names)) or "none is defined"
            raise ConfigError(f"models[{index}].upstream: {route.upstream!r} is not an upstream; allowed: {allowed}")
        if route.model in seen:
            raise ConfigError(f"models[{index}].name: {route.model!r} stands twice")
        seen.add(route.model)
    if config.auth_mode == "none" and not is_loopback(config.host):
        raise ConfigError(
            f"auth.mode: 'none' is allowed on a loopback address only, and host is {config.host!r}; "
            "use auth.mode: keys, or host: 127.0.0.1"
        )
    limits = config.limits
    if not limits.lease_renewal_s < limits.lease_give_up_s < limits.lease_s:
        raise ConfigError("limits: expected lease_renewal_s < lease_give_up_s < lease_s")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on *host*."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_upstreams(section: Section) -> tuple[UpstreamConfig, ...]:
    return tuple(_parse_upstream(name, section.section(name)) for name in section.names())


def _parse_upstream(name: str, section: Section) -> UpstreamConfig:
    section.refuse_unknown(("base_url", "api_key", "max_concurrency", "quirks", "headers", "timeouts"))
    base_url = section.text("base_url")
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        section.fail("base_url", f"expected http://host[:port]/v1 or https://…, but got {base_url!r}")
    headers = section.section("headers")
    timeouts = section.section("timeouts")
    timeouts.refuse_unknown(tuple(field.name for field in attrs.fields(UpstreamTimeouts)))
    return UpstreamConfig(
        name=name,
        base_url=base_url.rstrip("/"),
        api_key=section.optional_text("api_key") or None,
        max_concurrency=section.integer("max_concurrency", 256, minimum=1, maximum=100_000),
        quirks=_parse_quirks(section.section("quirks")),
        headers=tuple((header, headers.text(header)) for header in headers.names()),
        timeouts=UpstreamTimeouts(
            **{field.name: timeouts.seconds(field.name) for field in attrs.fields(UpstreamTimeouts)}
        ),
    )


def _parse_quirks(section: Section) -> Quirks:
    section.refuse_unknown(("drop", "rename", "developer_role", "stream_usage"))
    drop = section.get("drop") or []
    if not isinstance(drop, list) or not all(isinstance(field, str) for field in drop):
        section.fail("drop", f"expected a list of field names, but got {drop!r}")
    rename = section.section("rename")
    return Quirks(
        drop=frozenset(drop),
        rename=tuple((field, rename.text(field)) for field in rename.names()),
        developer_role=section.flag("developer_role", default=True),
        stream_usage=section.flag("stream_usage", default=True),
    )


def _parse_models(top: Section) -> tuple[ModelRoute, ...]:
    entries = top.get("models") or []
    if not isinstance(entries, list):
        top.fail("models", f"expected a list, but got {entries!r}")
    return tuple(_parse_model(Section(entry, f"models[{index}]")) for index, entry in enumerate(entries))


def _parse_model(section: Section) -> ModelRoute:
    section.refuse_unknown(("name", "upstream", "upstream_model", "price", "tools"))
    if section.get("tools"):
        section.fail("tools", "server tools are not available in this release; remove the key")
    name = section.text("name")
    return ModelRoute(
        model=name,
        upstream=section.text("upstream"),
        upstream_model=section.text("upstream_model", name),
        price=_parse_price(section.section("price")) if section.get("price") is not None else None,
    )


def _parse_price(section: Section) -> Price:
    section.refuse_unknown(("input_per_million", "output_per_million", "currency"))
    return Price(
        input_per_million=section.decimal("input_per_million"),
        output_per_million=section.decimal("output_per_million"),
        currency=section.text("currency", "USD"),
    )


def _parse_limits(section: Section) -> Limits:
    fields = attrs.fields(Limits)
    section.refuse_unknown(tuple(field.name for field in fields))
    values: dict[str, Any] = {}
    for field in fields:
        value = section.get(field.name)
        if value is None:
            continue
        kind, low, high = type(field.default), field.metadata["minimum"], field.metadata["maximum"]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind or not low <= value <= high:
            noun = "an integer" if kind is int else "a number"
            section.fail(field.name, f"expected {noun} from {low} to {high}, but got {value!r}")
        values[field.name] = value
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
        keys = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            value = yaml.safe_load(environment[variable])
        except yaml.YAMLError as error:
            raise ConfigError(f"{variable}: is not valid YAML: {_one_line(error)}") from error
        section = document
        for key in keys[:-1]:
            inner = section.get(key)
            if inner is None:
                inner = section[key] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{variable}: {key!r} is not a mapping of keys; give its whole value as YAML instead")
            section = inner
        section[keys[-1]] = value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def render_config(config: Config) -> str:
    """The configuration in force as YAML, secrets masked."""
    document = {
        "host": config.host,
        "port": config.port,
        "database_url": _masked_url(config.database_url),
        "data_dir": str(config.data_dir),
        "auth": {"mode": config.auth_mode},
        "upstreams": {upstream.name: _render_upstream(upstream) for upstream in config.upstreams},
        "models": [_render_route(route) for route in config.models],
        "log_level": config.log_level,
        "limits": attrs.asdict(config.limits),
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _render_upstream(upstream: UpstreamConfig) -> dict[str, object]:
    quirks, timeouts = upstream.quirks, attrs.asdict(upstream.timeouts)
    return {
        "base_url": _masked_url(upstream.base_url),
        "api_key": MASK if upstream.api_key else None,
        "max_concurrency": upstream.max_concurrency,
        "quirks": {
            "drop": sorted(quirks.drop),
            "rename": dict(quirks.rename),
            "developer_role": quirks.developer_role,
            "stream_usage": quirks.stream_usage,
        },
        "headers": {name: MASK for name, _ in upstream.headers},
        "timeouts": {name: value for name, value in timeouts.items() if value is not None},
    }


def _render_route(route: ModelRoute) -> dict[str, object]:
    rendered: dict[str, object] = {
        "name": route.model,
        "upstream": route.upstream,
        "upstream_model": route.upstream_model,
    }
    if route.price is not None:
        rendered["price"] = {
            "input_per_million": str(route.price.input_per_million),
            "output_per_million": str(route.price.output_per_million),
            "currency": route.price.currency,
        }
    return rendered


def _masked_url(url: str | None) -> str | None:
    """*url* without the user, the password and the query, any of which may hold a secret."""
    if url is None:
        return None
    parts = urlsplit(url)
    location = parts.netloc.rpartition("@")[2]
    masked = f"{MASK}@{location}" if "@" in parts.netloc else location
    return urlunsplit((parts.scheme, masked, parts.path, MASK if parts.query else "", ""))
