"""What an operator can set, as frozen values."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.rates import OwnerRates
from dwctl_trio.domain.tools import ToolCatalog
from dwctl_trio.protocol.chat_completions import DEFAULT_QUIRKS, Quirks

ANY = "*"
"""Stands for every name that has no entry of its own."""


@attrs.frozen(kw_only=True)
class UpstreamTimeouts:
    """Where one upstream's times differ from ``limits``; None: they do not."""

    connect_s: float | None = None
    """As ``upstream_connect_s``."""
    first_byte_s: float | None = None
    """As ``upstream_first_byte_s``."""
    chunk_s: float | None = None
    """As ``upstream_chunk_s``."""
    total_s: float | None = None
    """As ``upstream_total_s``."""


@attrs.frozen(kw_only=True)
class UpstreamConfig:
    """One chat-completions server."""

    name: str
    """By which models refer to it."""
    base_url: str
    """Up to and with ``/v1``; the endpoint, such as ``/chat/completions``, is added."""
    api_key: str | None = None
    """Sent as ``Authorization: Bearer``; None sends no such header."""
    max_concurrency: int = 256
    """Calls under way at once."""
    quirks: Quirks = DEFAULT_QUIRKS
    """How it differs from the API that it imitates."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every call."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    """Where its times differ from ``limits``."""
    transport: str = "direct"
    """What carries its calls: ``direct``, HTTP/1.1 on Trio's sockets, or ``httpx``, httpx's own, which costs more."""


@attrs.frozen(kw_only=True)
class Config:
    """Everything an operator can set."""

    host: str = "127.0.0.1"
    """The address to listen on; ``0.0.0.0`` for all."""
    port: int = 3001
    """The original's; 0 takes any free one."""
    workers: int = 1
    """Processes of ``serve``, one for each core to be used; 1 needs no supervisor."""
    database_url: str | None = None
    """None: embedded PostgreSQL under ``data_dir``."""
    data_dir: Path = Path(".dwctl")
    """Where the embedded PostgreSQL keeps its data; relative to the configuration file, if there is one."""
    auth_mode: str = "keys"
    """``none`` lets everybody in as ``local``, and is refused unless ``host`` is a loopback address."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """The chat-completions servers, by name."""
    models: tuple[ModelRoute, ...] = ()
    """In the file's order; a route named ``*`` serves any other name."""
    model_tools: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """Names of the server tools that a model's entry lists, by its name; entries without any are not there."""
    tools: ToolCatalog = attrs.field(factory=dict)
    """The server's tools by name, in the file's order."""
    owners: tuple[tuple[str, OwnerRates], ...] = ()
    """Rates by owner; ``*`` holds for owners without an entry of their own."""
    limits: Limits = DEFAULT_LIMITS
    """Every bound of the system, by name."""
    flex_on_disconnect: str = "continue"
    """What becomes of a flex response whose client hangs up: ``continue`` or ``cancel``."""
    hosted_tools: str = "refuse"
    """What becomes of a request with tools that OpenAI's servers run: ``refuse`` it, or ``ignore`` the tools."""
    http_server: str = "direct"
    """How connections are served: ``direct``, by a short way to Quart's dispatch, or by ``hypercorn`` as it comes."""
    tracing_endpoint: str | None = None
    """The base URL of a collector that takes OTLP over HTTP; ``/v1/traces`` is added. None: no spans."""
    log_level: str = "info"
    """The least serious event that is logged."""

    def find_route(self, model: str) -> ModelRoute | None:
        """Where calls for *model* go, or None if no route serves it."""
        return find_route(self.models, model)

    def find_tools(self, model: str) -> tuple[str, ...]:
        """Names of the server tools that a request for *model* gets unless it names its own."""
        is_named = any(route.model == model for route in self.models)
        return self.model_tools.get(model if is_named else ANY, ())


def find_route(routes: Sequence[ModelRoute], model: str) -> ModelRoute | None:
    """The one of *routes* that serves *model*: its own before the one for all; None if none does."""
    for route in routes:
        if route.model == model:
            return route
    for route in routes:
        if route.model == ANY:
            passed_on = model if route.upstream_model == ANY else route.upstream_model
            return attrs.evolve(route, model=model, upstream_model=passed_on)
    return None
