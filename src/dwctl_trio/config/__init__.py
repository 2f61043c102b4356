"""The configuration: ``config.yaml`` and ``DWCTL_*``, read strictly into one frozen value."""

from dwctl_trio.config.reading import WORKERS_MAX, load_config, parse_config
from dwctl_trio.config.report import render_config
from dwctl_trio.config.rules import connections_needed, describe_missing_connections, find_warnings, is_loopback
from dwctl_trio.config.section import ConfigError
from dwctl_trio.config.values import ANY, Config, UpstreamConfig, UpstreamTimeouts

__all__ = [
    "ANY",
    "WORKERS_MAX",
    "Config",
    "ConfigError",
    "UpstreamConfig",
    "UpstreamTimeouts",
    "connections_needed",
    "describe_missing_connections",
    "find_warnings",
    "is_loopback",
    "load_config",
    "parse_config",
    "render_config",
]
