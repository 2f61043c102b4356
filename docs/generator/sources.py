"""What the reference pages are made of: docstrings of fields, and what a configuration's parser says of itself.

Rule: nothing here knows Markdown, and nothing is listed by hand that the code can be asked for.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import attrs

from dwctl_trio.config import Config, UpstreamConfig, UpstreamTimeouts, parse_config
from dwctl_trio.config.section import ConfigError
from dwctl_trio.domain.models import ModelRoute, Price
from dwctl_trio.domain.rates import OwnerRates
from dwctl_trio.domain.tools import AgentTool, HttpTool
from dwctl_trio.protocol.chat_completions import Quirks

MINIMAL: Mapping[str, Any] = {
    "upstreams": {"local": {"base_url": "http://127.0.0.1:8000/v1"}},
    "models": [
        {"name": "gpt-4o", "upstream": "local", "price": {"input_per_million": "0.15", "output_per_million": "0.60"}}
    ],
    "tools": [
        {"name": "get_weather", "kind": "http", "url": "https://tools.example/weather"},
        {"name": "researcher", "kind": "agent", "model": "gpt-4o"},
    ],
    "owners": {"acme": {}},
}
"""A configuration in which every section exists and has what it requires."""

_WRONG_VALUES = ("?", 7, [7])
_TOOL_MEANINGS = {
    "name": "What models call it.",
    "kind": "Which of the two kinds of tool it is.",
    "description": "What it is good for, in words for the model.",
}


def member_docs(kind: type) -> dict[str, str]:
    """The docstring after each field of an attrs class, or after each member of an enum, in the order of the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    name: str | None = None
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=str(found))) | ast.Assign(targets=[ast.Name(id=str(found))]):
                name = found
                docs[name] = ""
            case ast.Expr(value=ast.Constant(value=str(text))) if name is not None:
                docs[name] = " ".join(text.split())
                name = None
            case _:
                name = None
    return docs


def field_groups(kind: type) -> Iterator[tuple[str, list[str]]]:
    """The groups into which ``# -- title`` comments divide the fields of *kind*."""
    title, names = "", list[str]()
    for line in inspect.getsource(kind).splitlines():
        if found := re.fullmatch(r"\s*# -- (.+)", line):
            if names:
                yield title, names
            title, names = found[1], []
        elif found := re.match(r"    (\w+): ", line):
            names.append(found[1])
    yield title, names


def first_sentence(documented: object) -> str:
    """The first paragraph of a docstring, on one line."""
    text = inspect.getdoc(documented) or ""
    return " ".join(text.partition("\n\n")[0].split())


@attrs.frozen(kw_only=True)
class ConfigKey:
    """One key of the configuration, as its parser knows it."""

    path: str
    variable: str
    default: object
    """``attrs.NOTHING`` where the key is required."""
    allowed: str
    meaning: str


@attrs.frozen(kw_only=True)
class ConfigSection:
    """One mapping of the configuration."""

    title: str
    path: str
    """With placeholders, as in ``upstreams.<name>``."""
    prefix: str
    """In the parser's errors, as in ``upstreams.local``."""
    kind: type
    """The class that its values end up in."""
    put: Callable[[Any, str, Any], None]
    """Sets a key of this section in a document like ``MINIMAL``; ``attrs.NOTHING`` removes it."""
    read: Callable[[Config], Any]
    """The section in a parsed configuration."""
    fields: Mapping[str, str] = {}
    """Keys whose field has another name."""
    meanings: Mapping[str, str] = {}
    """Of keys that have no field, or whose field says it for readers of the code only."""

    @property
    def variable(self) -> str:
        """The environment variable of the section, which a key's name completes."""
        path = re.sub(r"\[.*", "", self.path)
        return "DWCTL_" + "".join(f"{part.upper()}__" for part in path.split(".") if part)


def _put_into(*steps: str | int) -> Callable[[Any, str, Any], None]:
    def put(document: Any, key: str, value: Any) -> None:
        for step in steps:
            document = document[step] if isinstance(step, int) else document.setdefault(step, {})
        if value is attrs.NOTHING:
            document.pop(key, None)
        else:
            document[key] = value

    return put


CONFIG_SECTIONS = (
    ConfigSection(
        title="Top level",
        path="",
        prefix="",
        kind=Config,
        put=_put_into(),
        read=lambda config: config,
        meanings={"auth": "Who may use the API.", "tracing": "Whom spans are told."},
    ),
    ConfigSection(
        title="Authentication",
        path="auth",
        prefix="auth",
        kind=Config,
        put=_put_into("auth"),
        read=lambda config: config,
        fields={"mode": "auth_mode"},
    ),
    ConfigSection(
        title="An upstream",
        path="upstreams.<name>",
        prefix="upstreams.local",
        kind=UpstreamConfig,
        put=_put_into("upstreams", "local"),
        read=lambda config: config.upstreams[0],
    ),
    ConfigSection(
        title="How an upstream differs",
        path="upstreams.<name>.quirks",
        prefix="upstreams.local.quirks",
        kind=Quirks,
        put=_put_into("upstreams", "local", "quirks"),
        read=lambda config: config.upstreams[0].quirks,
    ),
    ConfigSection(
        title="An upstream's own times",
        path="upstreams.<name>.timeouts",
        prefix="upstreams.local.timeouts",
        kind=UpstreamTimeouts,
        put=_put_into("upstreams", "local", "timeouts"),
        read=lambda config: config.upstreams[0].timeouts,
    ),
    ConfigSection(
        title="A model",
        path="models[]",
        prefix="models[0]",
        kind=ModelRoute,
        put=_put_into("models", 0),
        read=lambda config: config.models[0],
        fields={"name": "model"},
        meanings={"tools": "Names of the tools that a request gets which has no `tools` of its own."},
    ),
    ConfigSection(
        title="A model's price",
        path="models[].price",
        prefix="models[0].price",
        kind=Price,
        put=_put_into("models", 0, "price"),
        read=lambda config: config.models[0].price,
    ),
    ConfigSection(
        title="An HTTP tool",
        path="tools[]",
        prefix="tools[0]",
        kind=HttpTool,
        put=_put_into("tools", 0),
        read=lambda config: config.tools["get_weather"],
        meanings=_TOOL_MEANINGS
        | {
            "url": "Where the arguments are posted to.",
            "parameters": "The JSON Schema of the arguments, which are validated before anything is sent.",
            "timeout_s": "Seconds for one call, redirects and body included; without it `limits.tool_s`.",
        },
    ),
    ConfigSection(
        title="An agent",
        path="tools[]",
        prefix="tools[1]",
        kind=AgentTool,
        put=_put_into("tools", 1),
        read=lambda config: config.tools["researcher"],
        fields={"model": "route"},
        meanings=_TOOL_MEANINGS
        | {
            "model": "What it thinks with.",
            "instructions": "Its system message.",
            "tools": "Names of the tools that it may call, other agents and itself included.",
            "timeout_s": "Seconds for one call, with all that the agent does; without it `limits.agent_s`.",
        },
    ),
    ConfigSection(
        title="Tracing",
        path="tracing",
        prefix="tracing",
        kind=Config,
        put=_put_into("tracing"),
        read=lambda config: config,
        fields={"endpoint": "tracing_endpoint"},
    ),
    ConfigSection(
        title="An owner's rates",
        path="owners.<name>",
        prefix="owners.acme",
        kind=OwnerRates,
        put=_put_into("owners", "acme"),
        read=lambda config: config.owners[0][1],
    ),
)


def config_keys(section: ConfigSection) -> list[ConfigKey]:
    """The keys of *section* in the order of its class, everything about them asked of the parser."""
    docs = member_docs(section.kind)
    order = list(docs)
    keys = sorted(_known_keys(section), key=lambda key: order.index(found) if (found := _field(section, key)) else 99)
    parsed = section.read(parse_config(MINIMAL))
    in_list = "[" in section.path
    return [
        ConfigKey(
            path=f"{section.path}.{key}" if section.path else key,
            variable="" if in_list else section.variable + key.upper(),
            default=_default(section, key, parsed),
            allowed=_allowed(section, key),
            meaning=_meaning(section, docs, key),
        )
        for key in keys
    ]


def _meaning(section: ConfigSection, docs: Mapping[str, str], key: str) -> str:
    if key in section.meanings:
        return section.meanings[key]
    field = _field(section, key)
    assert field is not None, f"{section.path}.{key} has no field and no meaning"
    return docs[field] or first_sentence(section.kind)


def _field(section: ConfigSection, key: str) -> str | None:
    name = section.fields.get(key, key)
    return name if name in {field.name for field in attrs.fields(section.kind)} else None


def _error(section: ConfigSection, key: str, value: object) -> str | None:
    """What the parser says of *value* under *key*, without the key; None if it takes it."""
    document = deepcopy(dict(MINIMAL))
    section.put(document, key, value)
    full = f"{section.prefix}.{key}" if section.prefix else key
    try:
        parse_config(document)
    except ConfigError as error:
        return str(error).removeprefix(f"{full}: ") if str(error).startswith(f"{full}: ") else None
    return None


def _known_keys(section: ConfigSection) -> list[str]:
    problem = _error(section, "zzzzzzzz", 1)
    assert problem is not None
    return problem.partition("known keys: ")[2].split(", ")


def _default(section: ConfigSection, key: str, parsed: object) -> object:
    if _error(section, key, attrs.NOTHING) == "is required":
        return attrs.NOTHING
    field = _field(section, key)
    return None if field is None else getattr(parsed, field)


def _allowed(section: ConfigSection, key: str) -> str:
    for value in _WRONG_VALUES:
        problem = _error(section, key, value)
        if problem is not None:
            break
    else:
        raise AssertionError(f"{section.prefix}.{key} takes anything")
    if problem.endswith("allowed: local"):
        return "the name of an upstream"
    if problem.endswith("is served by no entry of models"):
        return "a name that `models` serves"
    return re.sub(r", but got .*|; put it in quotes|^'\?' is not allowed; allowed: |^expected ", "", problem)
