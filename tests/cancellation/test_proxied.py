"""Cancelling a call that is handed over at every one of its task steps: nothing is lost, nothing is left."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from tests.cancellation.benches import SweepBench, open_memory_bench, open_postgres_bench

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.idempotency import IdempotencyKey
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.engine.proxied import answer_chat, stream_chat
from dwctl_trio.engine.scope import ResponseRefused
from dwctl_trio.engine.token_count import count_input_tokens
from dwctl_trio.http.event_body import EventBody
from dwctl_trio.ports import NewChat
from dwctl_trio.protocol.chat_body import parse_chat, parse_completion, parse_embeddings
from dwctl_trio.testing.cancel_sweep import sweep_cancellation
from dwctl_trio.testing.request_bench import OWNER, make_new

STREAMED = ["each-4", "error-500", "cut-2-each", "json-3"]
"""An answer in several reads, a refusal, a failure under way, and an answer that comes whole."""
WHOLE = ["echo-2", "error-500", "cut-2"]


def chat(model: str, stream: bool) -> ChatRequest:
    return parse_chat({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream})


def completion(model: str, stream: bool) -> ChatRequest:
    return parse_completion({"model": model, "prompt": "hello", "stream": stream})


def embeddings(model: str, stream: bool) -> ChatRequest:
    assert not stream
    return parse_embeddings({"model": model, "input": "hello"})


class Calls:
    """One call after the other on one bench, and what the client of the last was told."""

    def __init__(self, bench: SweepBench) -> None:
        self.bench = bench
        self.response_id = uuid4()
        self.told: list[bytes] = []

    def begin(self) -> UUID:
        self.told.clear()
        self.bench.requests.channels.clear()
        self.response_id = uuid4()
        return self.response_id

    async def make(self, request: ChatRequest) -> None:
        key = IdempotencyKey(text=uuid4().hex, body_digest=bytes(32))
        route = ModelRoute(model=request.model, upstream="simulator", upstream_model=request.model)
        new = NewChat(
            response_id=self.begin(), owner=OWNER, key_prefix=None, request=request, route=route, idempotency=key
        )
        services = self.bench.requests.services
        async with trio.open_nursery() as nursery:
            try:
                if not request.stream:
                    self.told.append(await answer_chat(services, new))
                    return
                receive_frames = await stream_chat(services, new, nursery)
            except ResponseRefused:
                return
            self.bench.requests.channels.append(receive_frames)
            async with EventBody(receive_frames, keep_alive_s=services.limits.keep_alive_s) as body:
                async for frames in body:
                    self.told.append(frames)

    async def count(self, model: str) -> None:
        new = make_new(model, stream=False)
        self.begin()
        self.response_id = new.response_id
        with suppress(ResponseRefused):
            self.told.append(str(await count_input_tokens(self.bench.requests.services, new)).encode())

    async def check(self) -> RowState | None:
        """The state of the last call's row, after all that could be left has been looked for."""
        await self.bench.requests.check_nothing_left()
        self.bench.check_store()
        stored = await self.bench.read(self.response_id)
        if stored is None:
            assert not self.told, "something was said, so its row is there"
            return None
        (step,) = stored.steps
        assert stored.state in TERMINAL_STATES
        assert (step.state.value, stored.metered) == (stored.state.value, {step.id})
        assert stored.log is None
        if b"".join(self.told).endswith(b"[DONE]\n\n"):
            assert stored.state is not RowState.CANCELED
        return stored.state


async def _sweep(calls: Calls, scenarios: dict[str, Callable[[], Awaitable[None]]], what: str) -> None:
    runs, ended = 0, {state.value: 0 for state in TERMINAL_STATES}
    for scenario in scenarios.values():
        async with aclosing(sweep_cancellation(scenario)) as sweep:
            async for run in sweep:
                state = await calls.check()
                runs += 1
                if state is not None:
                    ended[state.value] += 1
                assert run.was_cancelled or state is not None
    print(f"cancel sweep, {what}: {runs} runs over {len(scenarios)} calls, one a task step; rows ended {ended}")
    assert min(ended.values()) > 0


def _scenarios(calls: Calls, make: Any, models: list[str], *, stream: bool) -> dict[str, Callable[[], Awaitable[None]]]:
    return {model: lambda model=model: calls.make(make(model, stream)) for model in models}


@asynccontextmanager
async def _open(bench: AbstractAsyncContextManager[SweepBench]) -> AsyncIterator[Calls]:
    async with bench as opened:
        yield Calls(opened)


@pytest.mark.slow
@pytest.mark.parametrize("make", [chat, completion])
async def test_a_streamed_call_may_be_cancelled_at_every_step_in_memory(make: Any) -> None:
    async with _open(open_memory_bench()) as calls:
        scenarios = _scenarios(calls, make, STREAMED, stream=True)
        await _sweep(calls, scenarios, f"{make.__name__}, streamed, memory store")


@pytest.mark.slow
@pytest.mark.parametrize("make", [chat, embeddings])
async def test_a_blocking_call_may_be_cancelled_at_every_step_in_memory(make: Any) -> None:
    async with _open(open_memory_bench()) as calls:
        scenarios = _scenarios(calls, make, WHOLE, stream=False)
        await _sweep(calls, scenarios, f"{make.__name__}, blocking, memory store")


@pytest.mark.slow
async def test_a_streamed_call_may_be_cancelled_at_every_step_on_postgresql(postgres_dsn: str) -> None:
    async with _open(open_postgres_bench(postgres_dsn)) as calls:
        scenarios = _scenarios(calls, chat, STREAMED[:3], stream=True)
        await _sweep(calls, scenarios, "chat, streamed, PostgreSQL")


@pytest.mark.slow
async def test_a_count_of_tokens_may_be_cancelled_at_every_step_in_memory() -> None:
    async with _open(open_memory_bench()) as calls:
        scenarios = {model: lambda model=model: calls.count(model) for model in ("echo-2", "error-500")}
        await _sweep(calls, scenarios, "input tokens, memory store")
