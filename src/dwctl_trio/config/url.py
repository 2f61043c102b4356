"""The URLs of a configuration: which are allowed, and how they are shown without their secrets."""

import re
from urllib.parse import parse_qs, urlsplit, urlunsplit

import httpx

CHAT_PATH = "/chat/completions"
"""What is added to an upstream's ``base_url``."""
MASK = "***"
"""What stands for a secret in all that is shown."""

_DATABASE_SCHEMES = ("postgresql://", "postgres://")
_SSL_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:\[\]]*)(:[0-9]{1,5})?")


def is_base_url(url: str) -> bool:
    """Whether a path such as ``/chat/completions`` can be added to *url* and then called over HTTP."""
    try:
        parts = urlsplit(url)
        is_port_valid = parts.port != 0
    except ValueError:
        return False
    is_one_word = url.isprintable() and " " not in url
    is_bare = "?" not in url and "#" not in url
    return is_one_word and is_bare and is_port_valid and parts.scheme in {"http", "https"} and bool(parts.hostname)


def is_tool_url(url: str) -> bool:
    """Whether *url* can be posted to: http or https, a host, no user, no fragment, no zone."""
    try:
        parts = urlsplit(url)
        is_port_valid = parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        return False
    is_one_word = url.isprintable() and " " not in url
    is_bare = "@" not in parts.netloc and "%" not in parts.netloc and "#" not in url
    return is_one_word and is_bare and is_port_valid and parts.scheme in {"http", "https"} and bool(parts.hostname)


def is_database_url(url: str) -> bool:
    """Whether *url* names a PostgreSQL database: hosts, each perhaps with a port, and an ``sslmode`` that exists."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    hosts = parts.netloc.rpartition("@")[2].split(",")
    modes = parse_qs(parts.query).get("sslmode", [])
    return (
        url.startswith(_DATABASE_SCHEMES)
        and bool(parts.netloc or parts.query)
        and all(_HOST.fullmatch(host) for host in hosts)
        and all(mode in _SSL_MODES for mode in modes)
    )


def mask_url(url: str) -> str:
    """*url* without the user, the password and the query, any of which may hold a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    if not parts.netloc or "@" in f"{parts.path}{parts.query}{parts.fragment}":  # a secret may stand anywhere
        return f"{parts.scheme}://{MASK}" if parts.scheme and "://" in url else MASK
    location = parts.netloc.rpartition("@")[2]
    masked = f"{MASK}@{location}" if "@" in parts.netloc else location
    return urlunsplit((parts.scheme, masked, parts.path, MASK if parts.query else "", ""))
