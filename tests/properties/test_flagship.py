"""What was streamed is what is stored is what GET returns, for any upstream: the property the project stands on.

Real sockets and a real PostgreSQL; Hypothesis runs in a thread beside the service and writes the upstream's scripts.
"""

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dwctl_trio.domain.assembly import assemble, fold
from dwctl_trio.domain.event_grammar import check_stream
from dwctl_trio.domain.events import (
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
)
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.steps import Chain
from dwctl_trio.domain.transitions import Finish, next_action
from dwctl_trio.http.authentication import LOCAL_OWNER
from dwctl_trio.postgres.store import PostgresStore
from dwctl_trio.protocol.request_body import LOGPROBS, parse_request
from dwctl_trio.testing.byte_upstream import ByteUpstream, open_byte_upstream
from dwctl_trio.testing.chat_scripts import PROVIDER_CANARY, ChatScript
from dwctl_trio.testing.service import Service, open_service
from dwctl_trio.testing.strategies import byte_splits, chat_scripts, render_sse
from dwctl_trio.testing.wire import parse_response, read_stream

EXAMPLES = 200
TRANSPORTS = ["direct", "httpx"]
BODY = {
    "input": "hello", "stream": True, "metadata": {"key": "value"}, "temperature": 0.5,
    "include": [LOGPROBS],
}  # fmt: skip
_TERMINAL = (ResponseCompleted, ResponseIncomplete, ResponseFailed)


@attrs.frozen(kw_only=True)
class Answer:
    """What the upstream sends."""

    script: ChatScript
    pieces: list[bytes]
    is_cut: bool
    transport: str
    """What carries the call, which is the model's name, too."""


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    script = draw(chat_scripts(failing=draw(st.integers(0, 3)) == 0))
    data = render_sse(
        script,
        newline=draw(st.sampled_from([b"\n", b"\r\n", b"\r"])),
        comments=draw(st.booleans()),
        final_blank_line=draw(st.booleans()),
    )
    cut_at = draw(st.integers(0, len(data))) if draw(st.integers(0, 5)) == 0 else None
    sent = data if cut_at is None else data[:cut_at]
    transport = draw(st.sampled_from(TRANSPORTS))
    return Answer(script=script, pieces=draw(byte_splits(sent)), is_cut=cut_at is not None, transport=transport)


async def test_what_was_streamed_is_what_is_stored_for_any_upstream(postgres_dsn: str) -> None:
    async with open_byte_upstream() as upstream:
        overrides = {
            "upstreams": {name: {"base_url": upstream.base_url, "transport": name} for name in TRANSPORTS},
            "models": [{"name": name, "upstream": name} for name in TRANSPORTS],
        }
        async with open_service(postgres_dsn, overrides) as service:
            counts = {"completed": 0, "incomplete": 0, "failed": 0, "refused": 0}

            @settings(max_examples=EXAMPLES)
            @given(answers())
            def check(answer: Answer) -> None:
                outcome = trio.from_thread.run(_check_answer, service, upstream, answer)
                counts[outcome] += 1

            await trio.to_thread.run_sync(check)
    print(f"flagship: {EXAMPLES} scripts over real sockets and PostgreSQL: {counts}")
    assert counts["completed"] > 0
    assert counts["failed"] > 0


async def _check_answer(service: Service, upstream: ByteUpstream, answer: Answer) -> str:
    upstream.pieces, upstream.is_cut = answer.pieces, answer.is_cut
    body = BODY | {"model": answer.transport}
    request = parse_request(body)
    reply = await service.client.post("/v1/responses", json=body)
    assert PROVIDER_CANARY not in reply.text
    assert reply.status_code == 200, "the upstream's head was a success"

    stream = read_stream(reply.content, request)
    events = [numbered.event for numbered in stream.events]
    assert check_stream(stream.events) is None
    assert stream.is_done
    assert [index for index, event in enumerate(events) if isinstance(event, _TERMINAL)] == [len(events) - 1]
    if not answer.is_cut:
        expected = answer.script.expected
        assert isinstance(events[-1], ResponseFailed) == (expected.finish_reason is None)

    final_body = stream.data[-1]["response"]
    stored_body = (await service.client.get(f"/v1/responses/{final_body['id']}")).json()
    assert stored_body == final_body

    told, opening = events[-1].response, events[0]
    assert isinstance(opening, ResponseCreated)
    store = PostgresStore(service.pool, limits=service.config.limits, daemon_id=told.id)
    chain = await store.read_chain(told.id, LOCAL_OWNER)
    assert fold(events) == told
    assert _assembled(opening.response, chain, told, request) == told == parse_response(stored_body, request)
    return told.status.value


def _assembled(opening: Response, chain: Chain, told: Response, request: ResponseRequest) -> Response:
    action = next_action(chain, request=request, limits=Limits())
    assert isinstance(action, Finish)
    ended = assemble(opening, chain, action.ending, ended_at=told.completed_at or 0)
    if ended.error is None or told.error is None:
        return _as_on_the_wire(ended)
    return _as_on_the_wire(attrs.evolve(ended, error=attrs.evolve(ended.error, type=told.error.type)))


def _as_on_the_wire(response: Response) -> Response:
    """The wire has no unknown details and no error types."""
    if response.usage is None:
        return response
    usage = attrs.evolve(
        response.usage,
        cached_tokens=response.usage.cached_tokens or 0,
        reasoning_tokens=response.usage.reasoning_tokens or 0,
        cache_write_tokens=response.usage.cache_write_tokens or 0,
    )
    return attrs.evolve(response, usage=usage)
