"""What no single key of a configuration can tell: whether its parts fit one another.

Rule 1: what cannot work is an error that names its keys.
Rule 2: what works, and serves nobody, is a warning.
"""

import ipaddress
from collections.abc import Iterator

import attrs

from dwctl_trio.config.section import ConfigError
from dwctl_trio.config.values import Config
from dwctl_trio.domain.limits import EMBEDDED_CONNECTIONS, LIMIT_RULES, LimitRule, Limits

_OTHER_CONNECTIONS = 5
"""Three that PostgreSQL keeps for superusers, one of a command, and one to spare."""


def check_whole(config: Config) -> None:
    """Refuse a configuration whose parts contradict one another.

    Raises:
        ConfigError: With the keys that do.
    """
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
    for rule in LIMIT_RULES:
        if not rule.is_kept(config.limits):
            raise ConfigError(f"limits: {_describe_broken(rule, config.limits)}")


def find_warnings(config: Config) -> Iterator[str]:
    """What the operator should know before the first client finds out."""
    if not config.upstreams:
        yield "upstreams: none is defined, so there is nothing to call; add one with its base_url"
    if not config.models:
        yield "models: none is defined, so every request will be a 404; add one, or one named '*' for all names"
    needed = connections_needed(config)
    if config.workers > 1 and config.database_url is None and needed > EMBEDDED_CONNECTIONS:
        yield describe_missing_connections(config, EMBEDDED_CONNECTIONS)


def connections_needed(config: Config) -> int:
    """Connections to PostgreSQL that all workers and one command beside them open at the most."""
    return config.workers * (config.limits.store_connections + 1) + _OTHER_CONNECTIONS


def describe_missing_connections(config: Config, allowed: int) -> str:
    """What to do where PostgreSQL allows only *allowed* connections and more may be needed."""
    return (
        f"workers: {config.workers} workers may open {connections_needed(config)} connections, and PostgreSQL allows "
        f"{allowed}; lower workers or limits.store_connections, or raise its max_connections"
    )


def _describe_broken(rule: LimitRule, limits: Limits) -> str:
    values = attrs.asdict(limits)
    numbers = " + ".join(f"{values[name]:g}" for name in rule.smaller)
    return f"expected {rule}, but got {numbers} and {values[rule.larger]:g}: {rule.reason}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on *host*."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
