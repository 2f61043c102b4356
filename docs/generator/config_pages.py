"""The pages on configuration and limits."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
from docs.generator.markdown import code, table
from docs.generator.sources import CONFIG_SECTIONS, ConfigKey, config_keys, field_groups, member_docs

from dwctl_trio.domain.limits import LIMIT_RULES, Limits

_EXAMPLE = Path(__file__).parents[1] / "reference" / "config.example.yaml"
_UNITS = {"_s": "seconds", "_bytes": "bytes", "_items": "items"}


def configuration_page() -> Iterable[str]:
    """Every key of ``config.yaml``."""
    yield "# Configuration"
    yield ""
    yield (
        "The server reads the file that `--config` names, then environment variables, then `--host` and "
        "`--port`; the later wins."
    )
    yield "Without a file and without variables, the defaults on this page hold."
    yield "`dwctl-trio check-config` prints the configuration in force, with `***` in place of every secret."
    yield ""
    yield "- An unknown key is an error that names the nearest known one."
    yield "- A wrong value is an error that names the key, the value and what is allowed; the exit status is 2."
    yield "- A key without a value (`null`) is a key that is not there."
    yield "- `${VAR}` inside a string of the file is that environment variable, which must be set."
    yield (
        "- `DWCTL_…` overrides the file: `DWCTL_AUTH__MODE=none` is `auth.mode`, and the value is YAML, also for lists."
    )
    yield (
        "- In a variable's name, capitals stand for any case and `_` also for a hyphen in the name of an "
        "upstream or a header."
    )
    yield "- A variable that begins with `DWCTL_` and is no key is an error."
    yield ""
    yield "## Example"
    yield ""
    yield "```yaml"
    yield from _EXAMPLE.read_text(encoding="utf-8").splitlines()
    yield "```"
    for section in CONFIG_SECTIONS:
        yield ""
        yield f"## {section.title}" + (f": `{section.path}`" if section.path else "")
        yield ""
        yield from table(("key", "default", "allowed", "meaning", "variable"), map(_row, config_keys(section)))
    yield ""
    yield (
        "A model named `*` serves every name that no other entry serves; the name is passed on unless "
        "`upstream_model` is set."
    )
    yield "To set models by a variable, give the whole list: `DWCTL_MODELS='[{name: \"*\", upstream: local}]'`."
    yield ""
    yield "## Limits: `limits`"
    yield ""
    yield "Every bound of the system can be set here by its name; [limits.md](limits.md) lists them."
    yield "Some of them must fit one another; that page says which."


def _row(key: ConfigKey) -> Iterator[str]:
    yield code(key.path)
    yield _default(key)
    yield key.allowed
    yield key.meaning
    yield code(key.variable) if key.variable else ""


def _default(key: ConfigKey) -> str:
    value = key.default
    if value is attrs.NOTHING:
        return "required"
    if key.path.endswith("upstream_model"):
        return "the name"
    if key.path in {"auth", "limits", "tracing", "upstreams.<name>.quirks"}:
        return "see below"
    if isinstance(value, bytes):
        return code(value.decode())
    if value is None or value == "" or isinstance(value, tuple | frozenset | dict) or attrs.has(type(value)):
        return "none"
    return code(str(value).lower() if isinstance(value, bool) else str(value))


def limits_page() -> Iterable[str]:
    """Every bound, by what it bounds."""
    yield "# Limits"
    yield ""
    yield "Every queue, body, loop, wait and retry has a bound on this page; what is not here does not wait or grow."
    yield (
        "Change one by its name under `limits` in the configuration, or by a variable, as in `DWCTL_LIMITS__TURNS=20`."
    )
    docs = member_docs(Limits)
    fields = {field.name: field for field in attrs.fields(Limits)}
    for title, names in field_groups(Limits):
        yield ""
        yield f"## {title[0].upper()}{title[1:]}"
        yield ""
        rows = []
        for name in names:
            field = fields[name]
            span = f"{_number(field.metadata['minimum'])} to {_number(field.metadata['maximum'])}"
            default: float = field.default or 0
            rows.append((code(name), _number(default), span, _unit(name), docs[name]))
        yield from table(("name", "default", "range", "unit", "reason"), rows)

    yield ""
    yield "## What they promise one another"
    yield ""
    yield "A configuration that breaks one of these is refused."
    yield ""
    yield from table(("rule", "reason"), ((code(str(rule)), rule.reason) for rule in LIMIT_RULES))


def _unit(name: str) -> str:
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "count")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.12g}"
