"""The HTTP headers that an operator has us send; any may be secret."""

import re
from collections.abc import Set as AbstractSet

from dwctl_trio.config.section import Section

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def parse_headers(section: Section, *, reserved: AbstractSet[str] = frozenset()) -> tuple[tuple[str, str], ...]:
    """The headers in *section*, in its order; those that are *reserved*, by lower-case name, are refused."""
    return tuple((name, _parse_value(section, name, reserved)) for name in section.names())


def _parse_value(section: Section, name: str, reserved: AbstractSet[str]) -> str:
    if not _NAME.fullmatch(name):
        section.fail(name, "is not the name of an HTTP header")
    if name.lower() in reserved:
        section.fail(name, "is a header that the server sets itself")
    value = section.optional_secret(name)
    if value is None:
        section.fail(name, "must not be empty")
    return value
