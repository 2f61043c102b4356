"""What ``micro`` measures: the pure parts that every token and every response goes through, each by itself.

Rule 1: a case prepares its input outside of what is measured.
Rule 2: inputs are fixed: the same bytes, ids and chains in every run, so that two runs execute the same instructions.
"""

import json as stdlib_json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.assembly import assemble, history_output, output_length, running_calls, terminal_event
from dwctl_trio.domain.events import ItemEvent, ResponseCreated, ResponseInProgress
from dwctl_trio.domain.ids import item_id
from dwctl_trio.domain.items import CallKind, ItemStatus, McpCall, OutputItem
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Completed, Response, ResponseStatus
from dwctl_trio.domain.steps import Chain, ModelCall, Step, StepState, ToolCall, ToolOutput
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.domain.transitions import TurnPlan, next_action, plan_turn
from dwctl_trio.domain.turn import FinishReason, ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.engine.emitter import Emitter
from dwctl_trio.engine.execution import apply_fragments
from dwctl_trio.engine.model_step import ModelStep
from dwctl_trio.engine.sinks import NoSink
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_completions import DEFAULT_QUIRKS, ChunkReassembler, TurnBounds, render_chat_request
from dwctl_trio.protocol.event_stream import EventEncoder
from dwctl_trio.protocol.request_body import encode_request, parse_request
from dwctl_trio.protocol.response_object import encode_response, render_turn
from dwctl_trio.protocol.sse import SseDecoder

TOKENS: Final = 200
"""Of an answer; what costs more for each of 2,000 grows with the length of the answer."""
LONG: Final = 10 * TOKENS
SMALL_TOKENS: Final = 10
STEPS: Final = 50
"""Of a response with tool rounds."""

_ID: Final = UUID("6f1c2a3b-0000-4000-8000-00000000abcd")
_STEP_ID: Final = UUID("6f1c2a3b-0000-4000-8000-0000000000ef")
_CREATED_AT: Final = 1_760_000_000
_DEPTH_MAX, _BRACKETS_MAX = 128, 100_000
_BOUNDS: Final = TurnBounds(event_bytes=1 << 20, answer_bytes=1 << 25, tool_calls=128, annotations=1000)
_ROUTE: Final = ModelRoute(model="gpt-4o", upstream="local", upstream_model="Qwen3-32B")
_USAGE: Final = Usage(input_tokens=12, output_tokens=200)
_LOG_BYTES_MAX: Final = 1 << 30
_BODY: Final = b'{"model":"gpt-4o","input":"Tell me of the sea.","stream":true}'
_TOOLS: Final = (OfferedTool(kind=CallKind.SERVER, name="get_weather", parameters=b'{"type":"object"}'),)
_LIMITS: Final = Limits(turns=STEPS)

Run: TypeAlias = Callable[[], object]
"""What is measured; it may be called once."""


@attrs.frozen(kw_only=True)
class Case:
    """One thing to measure."""

    name: str
    unit: str
    """What it is the cost of, as in ``token``."""
    units: int = 1
    """So many of them in a run."""
    prepare: Callable[[], Run]
    """Gives a run with input of its own."""


def cases() -> Sequence[Case]:
    """All of them; to be prepared inside of Trio, whose clock the engine's parts read."""
    return (*_token_cases(), *_response_cases(), *_chain_cases())


# -- tokens


def _token_cases() -> Iterator[Case]:
    yield _token_case("bare reference: json.loads and json.dumps", _bare_reference)
    yield _token_case("SSE decode", _sse_decode)
    yield _token_case("SSE decode, chunk decode, reassemble", _reassemble)
    yield _token_case("TurnOutput", _turn_output)
    yield _token_case("encode events", _encode)
    yield _token_case("Emitter.prepare", _emitter)
    yield _token_case("all of it, one read", lambda tokens: _all_of_it(tokens, tokens_a_read=tokens))
    yield Case(
        name="all of it, one read, 2,000 tokens",
        unit="token",
        units=LONG,
        prepare=lambda: _all_of_it(LONG, tokens_a_read=LONG),
    )
    yield _token_case("all of it, a read for each", lambda tokens: _all_of_it(tokens, tokens_a_read=1))
    yield _token_case("all of it, arguments of a call", _arguments)


def _token_case(name: str, prepare: Callable[[int], Run]) -> Case:
    return Case(name=name, unit="token", units=TOKENS, prepare=lambda: prepare(TOKENS))


def _chunk(choice: dict[str, Any] | None = None, **fields: Any) -> bytes:
    chunk = {
        "id": "chatcmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        "object": "chat.completion.chunk",
        "created": _CREATED_AT,
        "model": "Qwen3-32B",
        "choices": [] if choice is None else [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
        **fields,
    }
    return b"data: " + stdlib_json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _text_chunks(tokens: int) -> list[bytes]:
    return [_chunk({"delta": {"content": f" word{number}"}}) for number in range(tokens)]


def _opening_chunk() -> bytes:
    return _chunk({"delta": {"role": "assistant", "content": ""}})


def _closing_chunks() -> bytes:
    usage = {"prompt_tokens": _USAGE.input_tokens, "completion_tokens": _USAGE.output_tokens, "total_tokens": 212}
    finish = _chunk({"delta": {}, "finish_reason": "stop"})
    return finish + _chunk(usage=usage) + b"data: [DONE]\n\n"


def _reassembler() -> ChunkReassembler:
    return ChunkReassembler(_STEP_ID, bounds=_BOUNDS)


def _model_step() -> ModelStep:
    step = Step(id=_STEP_ID, sequence=1, descriptor=ModelCall(), state=StepState.PROCESSING)
    return ModelStep(step, route=_ROUTE, first_output_index=0, kind_of=lambda _name: CallKind.FUNCTION)


def _bare_reference(tokens: int) -> Run:
    """What ``reference_server`` does for a token, without its loop."""
    payloads = [chunk[len("data: ") : -2] for chunk in _text_chunks(tokens)]

    def run() -> None:
        for number, payload in enumerate(payloads):
            delta = stdlib_json.loads(payload)["choices"][0]["delta"]["content"]
            place = {"item_id": "msg_0", "output_index": 0, "content_index": 0}
            event = {"type": "response.output_text.delta", "sequence_number": number, **place, "delta": delta}
            data = stdlib_json.dumps({**event, "logprobs": []})
            f"event: response.output_text.delta\ndata: {data}\n\n".encode()

    return run


def _sse_decode(tokens: int) -> Run:
    data, decoder = b"".join(_text_chunks(tokens)), SseDecoder(event_bytes_max=_BOUNDS.event_bytes)
    return lambda: decoder.feed(data)


def _reassemble(tokens: int) -> Run:
    data, reassembler = b"".join(_text_chunks(tokens)), _reassembler()
    return lambda: reassembler.feed(data)


def _turn_output(tokens: int) -> Run:
    fragments = _reassembler().feed(b"".join(_text_chunks(tokens)))
    step = _model_step()
    return lambda: apply_fragments(step, fragments)


def _events(tokens: int) -> list[ItemEvent]:
    return apply_fragments(_model_step(), _reassembler().feed(b"".join(_text_chunks(tokens))))


def _encode(tokens: int) -> Run:
    events, encoder = _events(tokens), EventEncoder()
    return lambda: encoder.encode(0, events)


def _emitter(tokens: int) -> Run:
    events, emitter = _events(tokens), _make_emitter()
    return lambda: emitter.note(events)


def _make_emitter() -> Emitter:
    return Emitter(NoSink(), log_bytes_max=_LOG_BYTES_MAX)


def _all_of_it(tokens: int, *, tokens_a_read: int) -> Run:
    chunks = _text_chunks(tokens)
    reads = [b"".join(chunks[at : at + tokens_a_read]) for at in range(0, tokens, tokens_a_read)]
    return _translation(_opening_chunk(), reads)


def _arguments(tokens: int) -> Run:
    function = {"name": "get_weather", "arguments": ""}
    begin = _chunk({"delta": {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}})
    more = [{"index": 0, "function": {"arguments": f'"w{number}",'}} for number in range(tokens)]
    return _translation(begin, [b"".join(_chunk({"delta": {"tool_calls": [piece]}}) for piece in more)])


def _translation(begin: bytes, reads: Sequence[bytes]) -> Run:
    """From the bytes of *reads* to frames in the log, when *begin* has come before."""
    reassembler, step, emitter = _reassembler(), _model_step(), _make_emitter()
    emitter.note(apply_fragments(step, reassembler.feed(begin)))

    def run() -> None:
        for data in reads:
            emitter.note(apply_fragments(step, reassembler.feed(data)))

    return run


# -- responses


def _response_cases() -> Iterator[Case]:
    request = _request()
    opening, chain = _opening(request), _small_chain()
    final = assemble(opening, chain, Completed(), ended_at=_CREATED_AT)
    turn = _turn_of(chain)
    plan = _plan(request)
    yield _case("request: decode and parse", lambda: lambda: _parse(_BODY))
    yield _case("request: encode for its row", lambda: lambda: encode_request(request))
    yield _case("chat request", lambda: lambda: _render(request, (), plan))
    yield _case("created and in progress", lambda: _opening_events(opening))
    yield _case("assemble", lambda: lambda: assemble(opening, chain, Completed(), ended_at=_CREATED_AT))
    yield _case("response: encode", lambda: lambda: encode_response(final))
    yield _case("turn: encode for its row", lambda: lambda: json.encode(render_turn(turn)))
    yield _case("next_action after one turn", lambda: lambda: next_action(chain, request=request, limits=_LIMITS))
    yield _case("all of it, 10 tokens, streamed", _whole_response)


def _case(name: str, prepare: Callable[[], Run]) -> Case:
    return Case(name=name, unit="response", prepare=prepare)


def _parse(body: bytes) -> ResponseRequest:
    return parse_request(json.decode_strict(body, depth_max=_DEPTH_MAX, brackets_max=_BRACKETS_MAX))


def _request() -> ResponseRequest:
    return _parse(_BODY)


def _opening(request: ResponseRequest) -> Response:
    return Response(id=_ID, created_at=_CREATED_AT, request=request, status=ResponseStatus.IN_PROGRESS)


def _opening_events(opening: Response) -> Run:
    emitter = _make_emitter()
    return lambda: emitter.note([ResponseCreated(opening), ResponseInProgress(opening)])


def _render(request: ResponseRequest, output: Sequence[OutputItem], plan: TurnPlan) -> bytes:
    return render_chat_request(request, output, plan, upstream_model="Qwen3-32B", quirks=DEFAULT_QUIRKS)


def _plan(request: ResponseRequest, tools: tuple[OfferedTool, ...] = (), chain: Chain = ()) -> TurnPlan:
    return plan_turn(chain, tools=tools, choice=request.tool_choice, request=request, tree=chain)


def _small_chain() -> Chain:
    step = _model_step()
    apply_fragments(step, _reassembler().feed(b"".join(_text_chunks(SMALL_TOKENS)) + _closing_chunks()))
    return [step.end(StepState.COMPLETED)]


def _turn_of(chain: Chain) -> ModelTurn:
    turn = chain[0].result
    assert isinstance(turn, ModelTurn), "that is what the step was"
    return turn


def _whole_response() -> Run:
    """All that is pure of a streamed response: what its row, its client and its upstream get, and the decisions."""
    answer = _opening_chunk() + b"".join(_text_chunks(SMALL_TOKENS)) + _closing_chunks()

    def run() -> None:
        request = _parse(_BODY)
        encode_request(request)
        opening, emitter = _opening(request), _make_emitter()
        _render(request, history_output(()), _plan(request))
        emitter.note([ResponseCreated(opening), ResponseInProgress(opening)])
        step = _model_step()
        emitter.note(apply_fragments(step, _reassembler().feed(answer)))
        chain = [step.end(StepState.COMPLETED)]
        running_calls(chain)
        next_action(chain, request=request, limits=_LIMITS)
        final = assemble(opening, chain, Completed(), ended_at=_CREATED_AT)
        emitter.prepare([terminal_event(final)])
        emitter.encode_response(final)
        json.encode(render_turn(_turn_of(chain)))

    return run


# -- chains


def _chain_cases() -> Iterator[Case]:
    chain = _long_chain(STEPS)
    for first, last in ((1, 10), (STEPS - 9, STEPS)):
        decided = f"steps {first} to {last} of {STEPS}"
        span = range(first, last + 1)
        yield Case(name=f"decisions, {decided}", unit="step", units=10, prepare=_decisions(chain, span))
        yield Case(name=f"chat requests, {decided}", unit="call", units=5, prepare=_chat_requests(chain, span))


def _long_chain(steps: int) -> Chain:
    """Turns with one call of a server's tool each, and these calls."""
    chain: list[Step] = []
    for number in range(0, steps, 2):
        call_id, arguments = f"call_{number}", '{"city":"Porto"}'
        call = McpCall(
            id=item_id("mcp", UUID(int=number + 1), 0),
            status=ItemStatus.IN_PROGRESS,
            call_id=call_id,
            name="get_weather",
            arguments=arguments,
        )
        turn = ModelTurn(items=(call,), finish_reason=FinishReason.TOOL_CALLS, usage=_USAGE)
        tool = ToolCall(call_id=call_id, name="get_weather", arguments=arguments)
        chain.append(_ended(number + 1, ModelCall(), turn))
        chain.append(_ended(number + 2, tool, ToolOutput(output="18 degrees and a light breeze")))
    return chain


def _ended(sequence: int, descriptor: ModelCall | ToolCall, result: ModelTurn | ToolOutput) -> Step:
    state = StepState.COMPLETED
    return Step(id=UUID(int=sequence), sequence=sequence, descriptor=descriptor, state=state, result=result)


def _decisions(chain: Chain, steps: range) -> Callable[[], Callable[[], None]]:
    """What is decided before and after each of *steps*: what a turn may do, what it shows, and what follows."""
    request = _request()

    def run() -> None:
        for number in steps:
            before, after = chain[: number - 1], chain[:number]
            if isinstance(chain[number - 1].descriptor, ModelCall):
                _plan(request, _TOOLS, before)
                output_length(before)
                history_output(before)
                running_calls(after)
            next_action(after, request=request, limits=_LIMITS)

    return lambda: run


def _chat_requests(chain: Chain, steps: range) -> Callable[[], Callable[[], None]]:
    """What the model is sent for each turn of *steps*."""
    request = _request()
    turns = [number for number in steps if isinstance(chain[number - 1].descriptor, ModelCall)]
    asked = [(history_output(chain[: number - 1]), _plan(request, _TOOLS, chain[: number - 1])) for number in turns]

    def run() -> None:
        for output, plan in asked:
            _render(request, output, plan)

    return lambda: run
