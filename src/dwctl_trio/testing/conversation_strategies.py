"""Hypothesis strategies for conversations as clients send them: messages of any parts, calls with their outputs.

Rule: whatever is drawn is a valid input, and every call in it can be matched, unless the history is elsewhere.
"""

from functools import cache
from typing import Any

import attrs
from hypothesis import strategies as st

from dwctl_trio.domain.items import CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CallOutput,
    CustomToolCallOutput,
    FunctionCallOutput,
    InputAudio,
    InputFile,
    InputImage,
    InputItem,
    InputMessage,
    InputPart,
    InputReasoning,
    ItemReference,
    PartKind,
    Role,
)
from dwctl_trio.protocol.request_content import AUDIO_FORMATS, FILE_DETAILS, IMAGE_DETAILS

SERVER_TOOL_NAMES = ("f", "get_weather", "run-code")
"""Those of the server's tools that requests name."""
TOOL_NAMES = (*SERVER_TOOL_NAMES, "A" * 128)
_ITEM_IDS = ("", "item_1", "fc_0193a4d6000070008000000000000001a")


@cache
def texts(*, min_size: int = 0, max_size: int = 20) -> st.SearchStrategy[str]:
    """Any text that a client's JSON can hold: no NUL and no half of a surrogate pair."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(characters | st.sampled_from('"\\\n\r\u2028\u2029\u0085😀'), min_size=min_size, max_size=max_size)


@cache
def input_messages() -> st.SearchStrategy[InputMessage]:
    """Messages of every role, with any parts."""
    content = st.lists(st.one_of(_text_parts(), _attachments(), _sounds()), max_size=3).map(tuple)
    return st.builds(InputMessage, role=st.sampled_from(Role), content=content, id=_optional_ids())


@cache
def _text_parts() -> st.SearchStrategy[InputPart]:
    citations = st.none() | st.just(b'[{"type":"file_path","file_id":"f","index":0}]')
    return st.one_of(
        st.builds(InputPart, kind=st.sampled_from([PartKind.INPUT_TEXT, PartKind.REFUSAL]), text=texts()),
        st.builds(InputPart, kind=st.just(PartKind.OUTPUT_TEXT), text=texts(), annotations=citations),
    )


@cache
def _attachments() -> st.SearchStrategy[InputImage | InputFile]:
    addresses = ["https://a.example/b.png", "http://[::1]/", "data:image/png;base64,iVBORw0KGgo="]
    images = st.builds(InputImage, url=st.sampled_from(addresses), detail=st.sampled_from(IMAGE_DETAILS))
    files = st.builds(
        InputFile,
        content=texts(min_size=1, max_size=6) | st.just("data:application/pdf;base64,JVBERi0="),
        filename=st.none() | texts(max_size=6),
        detail=st.none() | st.sampled_from(FILE_DETAILS),
    )
    return images | files


@cache
def _sounds() -> st.SearchStrategy[InputAudio]:
    return st.builds(InputAudio, content=texts(min_size=1, max_size=6), format=st.sampled_from(AUDIO_FORMATS))


@cache
def _call_outputs() -> st.SearchStrategy[CallOutput]:
    written = st.builds(InputPart, kind=st.just(PartKind.INPUT_TEXT), text=texts(max_size=6))
    return texts(max_size=6) | st.lists(written | _attachments(), max_size=3).map(tuple)


@cache
def _optional_ids() -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from([item_id for item_id in _ITEM_IDS if item_id])


@cache
def _input_reasoning() -> st.SearchStrategy[InputReasoning]:
    thoughts = st.lists(texts(max_size=6), max_size=2).map(tuple)
    return st.builds(
        InputReasoning,
        id=_optional_ids(),
        summary=thoughts,
        content=st.none() | thoughts,
        encrypted_content=st.none() | texts(max_size=6),
        status=st.none() | st.sampled_from([ItemStatus.COMPLETED, ItemStatus.IN_PROGRESS, ItemStatus.INCOMPLETE]),
    )


@cache
def mcp_calls() -> st.SearchStrategy[McpCall]:
    """Calls of server tools as a later request repeats them, whatever became of them."""
    ids = st.sampled_from([f"mcp_{'0' * 31}{turn}{place}" for turn in (1, 2) for place in (0, 1)] + ["mcp_x"])
    common = {"name": st.sampled_from(TOOL_NAMES), "arguments": texts(max_size=6) | st.just('{"a": [1]}')}
    made = st.one_of(
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.COMPLETED), call_id=st.just(""), output=texts(), **common),
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.FAILED), call_id=st.just(""), error=texts(), **common),
        st.builds(McpCall, id=ids, status=st.just(ItemStatus.INCOMPLETE), call_id=st.just(""), **common),
    )
    return made.map(lambda call: attrs.evolve(call, call_id=call.id))


@cache
def _client_calls() -> st.SearchStrategy[FunctionCall | CustomToolCall]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "id": st.sampled_from(_ITEM_IDS),
        "status": st.sampled_from([ItemStatus.COMPLETED, ItemStatus.IN_PROGRESS, ItemStatus.INCOMPLETE]),
        "call_id": st.just(""),
        "name": st.sampled_from(TOOL_NAMES),
        "arguments": texts(max_size=6) | st.just('{"a": [1]}'),
    }
    return st.builds(FunctionCall, **fields) | st.builds(CustomToolCall, **fields)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[InputItem, ...]:
    """The input of a request: messages and calls, every call of the client's with its output somewhere behind it."""
    items: list[InputItem] = []
    waiting: list[FunctionCall | CustomToolCall] = []

    def answer(call: FunctionCall | CustomToolCall) -> None:
        waiting.remove(call)
        make = FunctionCallOutput if isinstance(call, FunctionCall) else CustomToolCallOutput
        items.append(make(call_id=call.call_id, output=draw(_call_outputs()), id=draw(_optional_ids())))

    for _ in range(draw(st.integers(1, 5))):
        free = [call_id for call_id in ("call_0", "call_1", "call_2") if call_id not in {c.call_id for c in waiting}]
        match draw(st.sampled_from(["message", "message", "call", "call", "server", "output", "reasoning"])):
            case "call" if free:
                call = attrs.evolve(draw(_client_calls()), call_id=draw(st.sampled_from(free)))
                items.append(call)
                waiting.append(call)
            case "server":
                items.append(draw(mcp_calls()))
            case "output" if waiting:
                answer(draw(st.sampled_from(waiting)))
            case "reasoning":
                items.append(draw(_input_reasoning()))
            case _:
                items.append(draw(input_messages()))
    for call in draw(st.permutations(waiting)):
        if call.status is not ItemStatus.INCOMPLETE or draw(st.booleans()):
            answer(call)
    return tuple(items)


@cache
def continuations() -> st.SearchStrategy[tuple[str | None, tuple[InputItem, ...] | None]]:
    """An earlier response to go on with, and the input in place of a conversation that stands alone."""
    references = st.builds(ItemReference, id=st.sampled_from([item_id for item_id in _ITEM_IDS if item_id]))
    outputs = st.builds(FunctionCallOutput, call_id=st.just("call_0"), output=_call_outputs())
    items = st.lists(input_messages() | references | outputs, max_size=3).map(tuple)
    with_reference = st.builds(lambda items, reference: (*items, reference), items, references)
    return st.one_of(
        st.just((None, None)),
        st.tuples(st.none(), with_reference),
        st.tuples(st.just("resp_0193a4d6000070008000000000000001"), st.none() | items),
    )
