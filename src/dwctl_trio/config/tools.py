"""Reading ``tools:`` of the configuration: HTTP endpoints and agents that models may call.

Rule 1: a tool that could never be called is an error now, not a puzzle for a model later.
Rule 2: agents may call each other in circles; ``limits.depth`` bounds them.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from dwctl_trio.config.headers import parse_headers
from dwctl_trio.config.schema import compile_schema
from dwctl_trio.config.section import ConfigError, Section, show
from dwctl_trio.config.url import is_tool_url, mask_url
from dwctl_trio.config.values import ANY, find_route
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.tools import AgentTool, HttpTool, ServerTool, ToolCatalog

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HTTP_KEYS = (
    *("name", "kind", "url", "description", "parameters", "timeout_s", "idempotent", "allow_private", "headers"),
)
_AGENT_KEYS = ("name", "kind", "model", "description", "instructions", "tools", "timeout_s")
_OUR_HEADERS = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "content-type", "host", "idempotency-key"),
        *("transfer-encoding", "x-response-id"),
    }
)
"""What every call carries by itself."""


def parse_tools(top: Section, routes: Sequence[ModelRoute], limits: Limits) -> ToolCatalog:
    """The server's tools, by name.

    Args:
        top: The whole document.
        routes: The models, for agents.
        limits: Times of tools that set none.

    Raises:
        ConfigError: One is wrong, or refers to what is not there.
    """
    catalog: dict[str, ServerTool] = {}
    for index, entry in enumerate(top.items("tools")):
        section = Section(entry, f"tools[{index}]")
        tool = _parse_tool(section, routes, limits)
        if tool.name in catalog:
            section.fail("name", f"{tool.name!r} stands twice")
        catalog[tool.name] = tool
    for index, tool in enumerate(catalog.values()):
        if isinstance(tool, AgentTool):
            check_tool_names(f"tools[{index}].tools", tool.tools, catalog)
    return catalog


def check_tool_names(key: str, names: Sequence[str], catalog: ToolCatalog) -> None:
    """Raise for the first of *names*, which stand at *key*, that is no tool of *catalog*."""
    for name in names:
        if name not in catalog:
            raise ConfigError(f"{key}: {show(name)} is not a tool; allowed: {', '.join(catalog) or 'none is defined'}")


def _parse_tool(section: Section, routes: Sequence[ModelRoute], limits: Limits) -> ServerTool:
    kind = section.choice("kind", None, ("http", "agent"))
    return _parse_http(section, limits) if kind == "http" else _parse_agent(section, routes, limits)


def _parse_name(section: Section) -> str:
    name = section.text("name")
    if not _NAME.fullmatch(name):
        section.fail("name", f"expected 1 to 64 letters, digits, underscores and hyphens, but got {show(name)}")
    return name


def _parse_http(section: Section, limits: Limits) -> HttpTool:
    section.refuse_unknown(_HTTP_KEYS)
    name, url = _parse_name(section), section.text("url").strip()
    if not is_tool_url(url):
        section.fail("url", f"expected http://host[:port]/path or https://…, but got {show(mask_url(url))}")
    return HttpTool(
        name=name,
        description=section.text("description", ""),
        parameters=_parse_parameters(section),
        url=url,
        headers=parse_headers(section.section("headers"), reserved=_OUR_HEADERS),
        timeout_s=section.seconds("timeout_s") or limits.tool_s,
        idempotent=section.flag("idempotent", default=False),
        allow_private=section.flag("allow_private", default=False),
    )


def _parse_parameters(section: Section) -> bytes:
    """The schema of the arguments, encoded; without one, anything goes."""
    schema: Any = section.get("parameters")
    if schema is None:
        schema = {"type": "object"}
    if not isinstance(schema, dict) or schema.get("type") != "object":
        section.fail("parameters", "expected a JSON Schema with type: object")
    try:
        encoded = msgspec.json.encode(schema)
        compile_schema(encoded)
    except (TypeError, OverflowError, RecursionError) as error:
        section.fail("parameters", f"cannot be written as JSON: {error}")
    except ValueError as error:
        section.fail("parameters", f"is not a JSON Schema: {error}")
    return encoded


def _parse_agent(section: Section, routes: Sequence[ModelRoute], limits: Limits) -> AgentTool:
    section.refuse_unknown(_AGENT_KEYS)
    name, model = _parse_name(section), section.text("model")
    route = None if model == ANY else find_route(routes, model)
    if route is None:
        section.fail("model", f"{show(model)} is served by no entry of models")
    return AgentTool(
        name=name,
        description=section.text("description", ""),
        route=route,
        instructions=section.optional_text("instructions"),
        tools=section.words("tools", "tool names"),
        timeout_s=section.seconds("timeout_s") or limits.agent_s,
    )
