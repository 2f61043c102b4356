"""One request after the other through the engine, over any store: what runs in a request's nursery, without HTTP.

The view, the opening, the loop and the SSE writer are the real ones, the upstream is the simulator and the tools are
the tool server's, both on real sockets; what is left out is the connection, so that a test can cancel the nursery at
any step or let the store fail.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import attrs
import trio

from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.limits import DEFAULT_LIMITS, Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.toolbox import resolve_tools
from dwctl_trio.domain.tools import ToolCatalog
from dwctl_trio.engine.leases import LiveResponses
from dwctl_trio.engine.scope import ResponseRefused, run_inline_blocking, run_inline_streaming
from dwctl_trio.engine.state import Services
from dwctl_trio.http.event_body import EventBody
from dwctl_trio.ports import NewResponse
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.faulty_store import Store
from dwctl_trio.testing.service import make_config
from dwctl_trio.testing.simulator import Simulator, open_simulator
from dwctl_trio.testing.tool_server import ToolServer, open_tool_server
from dwctl_trio.tools.http_tools import HttpToolRunner
from dwctl_trio.upstream.client import Upstreams, open_upstreams

OWNER = "somebody"
_UPSTREAM = "simulator"
_SETTLE_S_MAX = 5.0
_UNUSED_DSN = "postgresql://unused"


@attrs.define(eq=False)
class RequestBench:
    """What the requests run on, and what the last of them told its client."""

    services: Services
    simulator: Simulator
    upstreams: Upstreams
    tool_server: ToolServer
    new: NewResponse | None = None
    """The last request; None before the first."""
    told: list[bytes] = attrs.field(factory=list)
    """What the client of a streamed request got."""
    response: Response | None = None
    """What the client of a blocking request got."""
    refused: ResponseRefused | None = None
    """What the client got instead."""
    is_keyed: bool = False
    """Whether requests come with an idempotency key, each with another one."""
    channels: list[trio.MemoryReceiveChannel[bytes]] = attrs.field(factory=list)

    @property
    def response_id(self) -> UUID:
        """Of the last request."""
        assert self.new is not None
        return self.new.response_id

    async def serve_stream(self, model: str, **fields: Any) -> None:
        """A streamed request of *model*, with *fields* in its body, to its end."""
        new = self._begin(model, stream=True, **fields)
        async with trio.open_nursery() as nursery:
            try:
                receive_frames = await run_inline_streaming(self.services, new, nursery)
            except ResponseRefused as refused:
                self.refused = refused
                return
            self.channels.append(receive_frames)
            keep_alive_s = self.services.limits.keep_alive_s
            async with EventBody(receive_frames, keep_alive_s=keep_alive_s) as body:
                async for frames in body:
                    self.told.append(frames)

    async def serve_blocking(self, model: str, **fields: Any) -> None:
        """A blocking request of *model*, with *fields* in its body, to its end."""
        new = self._begin(model, stream=False, **fields)
        async with trio.open_nursery() as nursery:
            try:
                response = await run_inline_blocking(self.services, new, nursery)
            except ResponseRefused as refused:
                self.refused = refused
                return
            self.response = response
            self.told.append(response.status.value.encode())

    async def check_nothing_left(self) -> None:
        """Raise if the last request left anything of itself behind.

        Raises:
            AssertionError: An attempt, a place at the upstream, or an end of a channel is left.
            trio.TooSlowError: The upstream still answers, or a tool still has its call or its connection.
        """
        assert len(self.services.live) == 0
        with trio.fail_after(_SETTLE_S_MAX):
            await self.simulator.wait_idle()
            await self.tool_server.wait_idle()
        assert self.upstreams.free_places(_UPSTREAM) == self.upstreams.all_places(_UPSTREAM)
        for channel in self.channels:
            statistics = channel.statistics()
            assert statistics.open_send_channels == 0
            assert statistics.open_receive_channels == 0

    def _begin(self, model: str, *, stream: bool, **fields: Any) -> NewResponse:
        self.told.clear()
        self.channels.clear()
        self.response = self.refused = None
        key = IdempotencyKey(text=uuid4().hex, body_digest=bytes(32)) if self.is_keyed else None
        new = make_new(model, stream=stream, catalog=self.services.catalog, **fields)
        self.new = attrs.evolve(new, idempotency=key)
        return self.new


def make_new(model: str, *, stream: bool, catalog: ToolCatalog | None = None, **fields: Any) -> NewResponse:
    """A request for one answer of *model*, with *fields* in its body, under new ids.

    Without ``tools`` among the fields, it gets all tools of *catalog*.
    """
    request = parse_request({"model": model, "input": "hello", "stream": stream, **fields})
    catalog = catalog or {}
    return NewResponse(
        response_id=uuid4(),
        owner=OWNER,
        key_prefix=None,
        request=request,
        route=ModelRoute(model=model, upstream=_UPSTREAM, upstream_model=model),
        first_step_id=uuid4(),
        tools=resolve_tools(request, listed=list(catalog), catalog=catalog),
    )


@asynccontextmanager
async def open_request_bench(
    store: Store, limits: Limits = DEFAULT_LIMITS, overrides: Mapping[str, Any] | None = None
) -> AsyncIterator[RequestBench]:
    """A bench over *store*, for the time of the block.

    Args:
        store: Where the rows are.
        limits: The engine's.
        overrides: Top-level keys of the configuration that differ. A tool whose ``url`` is a path is the tool server's.
    """
    async with open_simulator() as simulator, open_tool_server() as tool_server:
        document = dict(overrides or {})
        document["tools"] = [_place(tool, tool_server) for tool in document.get("tools", ())]
        config = make_config(_UNUSED_DSN, simulator.base_url, document)
        async with open_upstreams(config.upstreams, limits) as upstreams:
            services = Services(
                store=store,
                conversations=store,
                queue=store,
                events=store,
                upstream=upstreams,
                chat=upstreams,
                tools=HttpToolRunner(limits),
                catalog=config.tools,
                limits=limits,
                live=LiveResponses(),
            )
            yield RequestBench(services, simulator, upstreams, tool_server)


def _place(tool: Mapping[str, Any], tool_server: ToolServer) -> Mapping[str, Any]:
    """*tool* as it is configured when its path is on *tool_server*."""
    if not str(tool.get("url", "")).startswith("/"):
        return tool
    return {"kind": "http", "allow_private": True, **tool, "url": tool_server.url(tool["url"])}
