"""Calls of chat-completions servers, over a transport of httpx.

Rule 1: leaving a call closes its connection at once unless the answer was read to its end.
Rule 2: a place at the upstream is taken before the transport is asked, so that its pool never queues: a pool that
queues loses its slots under cancellation (httpcore issue 1093).
Rule 3: nothing of a provider's text leaves this module, but for an answer that is handed over as it is.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import attrs
import httpx
import trio

from dwctl_trio.config import UpstreamConfig, UpstreamTimeouts
from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import (
    LimitExceeded,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.turn import Fragment
from dwctl_trio.ports import ChatCall, UpstreamCall
from dwctl_trio.protocol.answer_reader import AnswerReader, Item
from dwctl_trio.protocol.chat_answer import ChatAnswerReader, ChatPart, EmbeddingsReader
from dwctl_trio.protocol.chat_body import render_chat
from dwctl_trio.protocol.chat_completions import ChunkReassembler, TurnBounds, render_chat_request
from dwctl_trio.protocol.rejections import read_rejection
from dwctl_trio.protocol.trace_context import TraceContext, render_trace_context
from dwctl_trio.upstream.answer import HttpAnswer, read_error
from dwctl_trio.upstream.deadline import CallClock, CallDeadline, open_call_clock
from dwctl_trio.upstream.direct import DirectTransport
from dwctl_trio.upstream.plain import PlainTransport
from dwctl_trio.upstream.request_body import WholeBody
from dwctl_trio.upstream.transport import TransportOptions

_RETRY_AFTER_S_MAX = 3600.0
"""An upstream that asks for more is taken for one that does not know."""
_WAIT_RETRY_AFTER_S = 1.0
"""What we advise when no place became free."""
_PATHS = {
    Surface.CHAT: "chat/completions",
    Surface.COMPLETIONS: "completions",
    Surface.EMBEDDINGS: "embeddings",
}
_SUCCESS = range(200, 300)


class Upstreams:
    """All upstreams of the configuration, by name; keeps ``ports.Upstream``."""

    def __init__(self, clients: dict[str, "UpstreamClient"]) -> None:
        self._clients = clients

    def free_places(self, name: str) -> int:
        """Calls of upstream *name* that could begin now without waiting."""
        return self._clients[name].free_places

    def all_places(self, name: str) -> int:
        """Calls of upstream *name* that may be under way at once."""
        return self._clients[name].all_places

    def open_turn(self, call: UpstreamCall) -> AbstractAsyncContextManager[HttpAnswer[Fragment]]:
        """See ``ports.Upstream``."""
        return self._clients[call.route.upstream].open_turn(call)

    def open_chat(self, call: ChatCall) -> AbstractAsyncContextManager[HttpAnswer[ChatPart]]:
        """See ``ports.ChatUpstream``."""
        return self._clients[call.route.upstream].open_chat(call)


@asynccontextmanager
async def open_upstreams(configs: Sequence[UpstreamConfig], limits: Limits) -> AsyncIterator[Upstreams]:
    """Clients for all of *configs* for the time of the block; one TLS context serves them all."""
    tls = httpx.create_ssl_context(trust_env=False)
    async with AsyncExitStack() as stack:
        clock = stack.enter_context(open_call_clock())
        clients = {}
        for config in configs:
            transport = await stack.enter_async_context(_make_transport(config, limits, tls))
            clients[config.name] = UpstreamClient(transport, config, limits, clock)
        yield Upstreams(clients)


def _make_transport(config: UpstreamConfig, limits: Limits, tls: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    options = TransportOptions(
        connect_s=config.timeouts.connect_s or limits.upstream_connect_s,
        idle_connections=limits.upstream_idle_connections,
        idle_s=limits.upstream_idle_s,
    )
    kind = DirectTransport if config.transport == "direct" else PlainTransport
    return kind(tls, options)


class UpstreamClient:
    """The client of one upstream.

    Args:
        transport: Used by nobody else; one of this package, whose answers ``HttpAnswer`` can read.
        config: Where, as whom, and how it differs from others.
        limits: The bounds where *config* is silent.
        clock: Looks after the calls.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport, config: UpstreamConfig, limits: Limits, clock: CallClock
    ) -> None:
        self._transport = transport
        self._config = config
        self._clock = clock
        self._timing = self._with_own_times(limits, config.timeouts)
        self._limits = limits
        self._places = trio.Semaphore(config.max_concurrency, max_value=config.max_concurrency)
        self._urls = {surface: httpx.URL(f"{config.base_url}/{path}") for surface, path in _PATHS.items()}
        authorization = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        self._headers = httpx.Headers(
            {
                "content-type": "application/json",
                "accept": "text/event-stream, application/json",
                "accept-encoding": "identity",
                **authorization,
                **dict(config.headers),
                "host": self._urls[Surface.CHAT].netloc.decode("ascii"),
            }
        )

    @property
    def all_places(self) -> int:
        """Calls that may be under way at once."""
        return self._config.max_concurrency

    @property
    def free_places(self) -> int:
        """Calls that could begin now without waiting."""
        return self._places.value

    def open_turn(self, call: UpstreamCall) -> AbstractAsyncContextManager[HttpAnswer[Fragment]]:
        """See ``ports.Upstream``."""
        url = self._urls[Surface.CHAT]
        return self._open(url, partial(self._render_turn, call), self._turn_reader(call), call.trace)

    def open_chat(self, call: ChatCall) -> AbstractAsyncContextManager[HttpAnswer[ChatPart]]:
        """See ``ports.ChatUpstream``."""
        request, quirks, model = call.request, self._config.quirks, call.route.upstream_model
        render = partial(render_chat, request, upstream_model=model, quirks=quirks)
        url = self._urls[request.surface]
        return self._open(url, render, self._chat_reader(request), call.trace, is_whole=not request.stream)

    @asynccontextmanager
    async def _open(
        self,
        url: httpx.URL,
        render: Callable[[], bytes],
        reader: AnswerReader[Item],
        trace: TraceContext | None,
        *,
        is_whole: bool = False,
    ) -> AsyncIterator[HttpAnswer[Item]]:
        """Send what *render* gives to *url*, once there is a place for it, and wait for the head."""
        await self._take_place()
        try:
            with CallDeadline(self._clock, self._timing, is_whole=is_whole) as deadline:
                # Nobody else holds the body, so that it is gone when it was sent.
                response = await self._send(url, WholeBody(render()), deadline, trace)
                try:
                    if response.status_code not in _SUCCESS:
                        raise await self._explain_refusal(response)
                    yield HttpAnswer(response, reader, deadline, self._limits)
                finally:
                    await response.aclose()
        finally:
            self._places.release()

    async def _take_place(self) -> None:
        if self._places.value > 0:
            await trio.lowlevel.checkpoint_if_cancelled()  # lets no other task run: the call is the checkpoint
            self._places.acquire_nowait()
            return
        if self._places.statistics().tasks_waiting < self._limits.upstream_waiting:
            with trio.move_on_after(self._limits.upstream_wait_s):
                await self._places.acquire()
                return
        raise LimitExceeded(
            "Too many requests are under way at the model's server. Please try again later.",
            retry_after_s=_WAIT_RETRY_AFTER_S,
        )

    @staticmethod
    def _with_own_times(usual: Limits, own: UpstreamTimeouts) -> Limits:
        """The limits with this upstream's own times in place."""
        return attrs.evolve(
            usual,
            upstream_first_byte_s=own.first_byte_s or usual.upstream_first_byte_s,
            upstream_chunk_s=own.chunk_s or usual.upstream_chunk_s,
            upstream_total_s=own.total_s or usual.upstream_total_s,
        )

    def _turn_reader(self, call: UpstreamCall) -> ChunkReassembler:
        return ChunkReassembler(
            call.step_id,
            bounds=TurnBounds(
                event_bytes=self._limits.upstream_event_bytes,
                answer_bytes=self._limits.upstream_answer_bytes,
                tool_calls=self._limits.turn_tool_calls,
                annotations=self._limits.turn_annotations,
            ),
            custom_tools={tool.name for tool in call.plan.tools if tool.kind is CallKind.CUSTOM},
            wants_logprobs=call.request.asks_logprobs,
        )

    def _chat_reader(self, request: ChatRequest) -> AnswerReader[ChatPart]:
        answer_bytes_max = self._limits.upstream_answer_bytes
        if request.surface is Surface.EMBEDDINGS:
            return EmbeddingsReader(request.model, answer_bytes_max=answer_bytes_max)
        return ChatAnswerReader(
            request, event_bytes_max=self._limits.upstream_event_bytes, answer_bytes_max=answer_bytes_max
        )

    def _render_turn(self, call: UpstreamCall) -> bytes:
        quirks, model = self._config.quirks, call.route.upstream_model
        return render_chat_request(call.request, call.output, call.plan, upstream_model=model, quirks=quirks)

    async def _send(
        self, url: httpx.URL, body: WholeBody, deadline: CallDeadline, trace: TraceContext | None
    ) -> httpx.Response:
        """Send the request and wait for the head."""
        headers = self._headers.copy()
        headers["content-length"] = str(body.size)
        if trace is not None:
            headers.update(render_trace_context(trace))
        request = httpx.Request("POST", url, headers=headers, stream=body)
        deadline.expect_first_byte()
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.ConnectTimeout as error:
            raise UpstreamTimeout("The model's server did not accept a connection in time.") from error
        except httpx.ConnectError as error:
            raise UpstreamUnreachable("The model's server could not be reached.") from error
        except httpx.TransportError as error:
            raise UpstreamError("The connection to the model's server broke.") from error
        deadline.pause()
        return response

    async def _explain_refusal(self, response: httpx.Response) -> UpstreamRejected:
        return UpstreamRejected(
            f"The model's server answered with an error (status {response.status_code}).",
            status=response.status_code,
            retry_after_s=_retry_after_s(response.headers),
            rejection=read_rejection(await read_error(response, self._limits)),
        )


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """The upstream's ``Retry-After`` in seconds; None if there is none, or it is a date or absurd."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _RETRY_AFTER_S_MAX else None
