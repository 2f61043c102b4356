"""The configuration in force, for people to read: as YAML, every secret masked."""

import attrs
import msgspec
import yaml

from dwctl_trio.config.url import MASK, mask_url
from dwctl_trio.config.values import Config, UpstreamConfig
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.tools import AgentTool, HttpTool, ServerTool


def render_config(config: Config) -> str:
    """The configuration in force as YAML, secrets masked."""
    document = {
        "host": config.host,
        "port": config.port,
        "workers": config.workers,
        "database_url": None if config.database_url is None else mask_url(config.database_url),
        "data_dir": str(config.data_dir),
        "auth": {"mode": config.auth_mode},
        "upstreams": {upstream.name: _render_upstream(upstream) for upstream in config.upstreams},
        "models": [_render_route(route, config.model_tools.get(route.model, ())) for route in config.models],
        "tools": [_render_tool(tool) for tool in config.tools.values()],
        "owners": {name: attrs.asdict(rates) for name, rates in config.owners},
        "flex_on_disconnect": config.flex_on_disconnect,
        "hosted_tools": config.hosted_tools,
        "http_server": config.http_server,
        "tracing": {"endpoint": config.tracing_endpoint},
        "log_level": config.log_level,
        "limits": attrs.asdict(config.limits),
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _render_upstream(upstream: UpstreamConfig) -> dict[str, object]:
    quirks, timeouts = upstream.quirks, attrs.asdict(upstream.timeouts)
    return {
        "base_url": mask_url(upstream.base_url),
        "api_key": MASK if upstream.api_key else None,
        "max_concurrency": upstream.max_concurrency,
        "quirks": {
            "drop": sorted(quirks.drop),
            "rename": dict(quirks.rename),
            "developer_role": quirks.developer_role,
            "stream_usage": quirks.stream_usage,
            "named_tool_choice": quirks.named_tool_choice,
            "reasoning_history": quirks.reasoning_history or "none",
            "efforts": dict(quirks.efforts),
        },
        "headers": {name: MASK for name, _ in upstream.headers},
        "timeouts": {name: value for name, value in timeouts.items() if value is not None},
        "transport": upstream.transport,
    }


def _render_route(route: ModelRoute, tools: tuple[str, ...]) -> dict[str, object]:
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
    if route.queue_concurrency is not None:
        rendered["queue_concurrency"] = route.queue_concurrency
    if tools:
        rendered["tools"] = list(tools)
    return rendered


def _render_tool(tool: ServerTool) -> dict[str, object]:
    rendered: dict[str, object] = {"name": tool.name, "description": tool.description or None}
    match tool:
        case HttpTool():
            return rendered | {
                "kind": "http",
                "url": mask_url(tool.url),
                "parameters": msgspec.json.decode(tool.parameters),
                "timeout_s": tool.timeout_s,
                "idempotent": tool.idempotent,
                "allow_private": tool.allow_private,
                "headers": {name: MASK for name, _ in tool.headers},
            }
        case AgentTool():
            return rendered | {
                "kind": "agent",
                "model": tool.route.model,
                "instructions": tool.instructions,
                "tools": list(tool.tools),
                "timeout_s": tool.timeout_s,
            }
