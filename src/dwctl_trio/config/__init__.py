"""The configuration: ``config.yaml`` and ``DWCTL_*``, read strictly into one frozen value."""

from dwctl_trio.config.reading import load_config, parse_config
from dwctl_trio.config.report import render_config
from dwctl_trio.config.rules import find_warnings, is_loopback
from dwctl_trio.config.section import ConfigError
from dwctl_trio.config.values import ANY, Config, UpstreamConfig, UpstreamTimeouts

__all__ = [
    "ANY",
    "Config",
    "ConfigError",
    "UpstreamConfig",
    "UpstreamTimeouts",
    "find_warnings",
    "is_loopback",
    "load_config",
    "parse_config",
    "render_config",
]
