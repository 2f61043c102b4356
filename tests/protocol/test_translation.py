"""The translation to chat completions: nothing that a model could use is lost, and it comes in order."""

import json
import re
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.items import CallKind, CustomToolCall, FunctionCall, ItemStatus, McpCall
from dwctl_trio.domain.request import (
    CallOutput,
    CustomToolCallOutput,
    FunctionCallOutput,
    InputAudio,
    InputContent,
    InputFile,
    InputImage,
    InputItem,
    InputMessage,
    InputPart,
    InputReasoning,
    ItemReference,
    JsonSchema,
    PlainText,
    ReasoningOptions,
    ResponseRequest,
    Role,
)
from dwctl_trio.domain.tools import OfferedTool, allowed_tools
from dwctl_trio.domain.transitions import TurnPlan
from dwctl_trio.protocol.chat_request import DEFAULT_QUIRKS, Quirks, render_chat_request
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.testing.conversation_strategies import conversations
from dwctl_trio.testing.request_strategies import offered_tools, response_requests

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "translation.md"
ATTACHED = re.compile(r"The tool call call_\d gave back:")


def translate(request: ResponseRequest, *tools: OfferedTool, quirks: Quirks = DEFAULT_QUIRKS) -> dict[str, Any]:
    allowed = allowed_tools(tools, request.tool_choice)
    plan = TurnPlan(tools=allowed, tool_choice=request.tool_choice, max_output_tokens=request.max_output_tokens)
    body: dict[str, Any] = json.loads(render_chat_request(request, (), plan, upstream_model="m", quirks=quirks))
    return body


def asking(*items: InputItem, **members: Any) -> ResponseRequest:
    return ResponseRequest(model="m", input=items, **members)


def joined(pieces: list[Any]) -> list[Any]:
    """*pieces* with the texts that follow one another as one."""
    short: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str) and short and isinstance(short[-1], str):
            short[-1] += piece
        elif piece != "":
            short.append(piece)
    return short


def in_short(part: InputContent) -> Any:
    match part:
        case InputPart():
            return part.text
        case InputImage():
            return ("image", part.url, part.detail)
        case InputFile():
            return ("file", part.content, part.filename)
        case InputAudio():
            return ("audio", part.content, part.format)


def sent_in_short(part: dict[str, Any]) -> Any:
    match part["type"]:
        case "text":
            return part["text"]
        case "image_url":
            return ("image", part["image_url"]["url"], part["image_url"].get("detail", "auto"))
        case "file":
            return ("file", part["file"]["file_data"], part["file"].get("filename"))
        case "input_audio":
            return ("audio", part["input_audio"]["data"], part["input_audio"]["format"])
        case kind:
            raise AssertionError(f"no such part in chat completions: {kind}")


def pieces_of(content: Any) -> list[Any]:
    return [sent_in_short(part) for part in content] if isinstance(content, list) else [content or ""]


def is_attachment(message: dict[str, Any]) -> bool:
    content = message["content"]
    return isinstance(content, list) and bool(content) and bool(ATTACHED.fullmatch(content[0].get("text", "")))


def answered_calls(items: tuple[InputItem, ...]) -> list[tuple[FunctionCall | CustomToolCall | McpCall, CallOutput]]:
    """The calls in the order in which they were made, each with its outcome."""
    found: dict[int, CallOutput] = {}
    waiting: dict[str, int] = {}
    for place, item in enumerate(items):
        if isinstance(item, FunctionCall | CustomToolCall):
            waiting[item.call_id] = place
        elif isinstance(item, FunctionCallOutput | CustomToolCallOutput):
            found[waiting.pop(item.call_id)] = item.output
        elif isinstance(item, McpCall):
            found[place] = item.output or ""
    calls = [(items[place], found[place]) for place in sorted(found)]
    return [(call, output) for call, output in calls if isinstance(call, FunctionCall | CustomToolCall | McpCall)]


@given(items=conversations())
def test_every_text_image_file_and_sound_is_sent_in_its_place(items: tuple[InputItem, ...]) -> None:
    said = [message for message in translate(asking(*items))["messages"] if message["role"] != "tool"]

    sent = [piece for message in said if not is_attachment(message) for piece in pieces_of(message["content"])]

    asked = [in_short(part) for item in items if isinstance(item, InputMessage) for part in item.content]
    assert joined(sent) == joined(asked)


@given(items=conversations())
def test_every_call_and_everything_that_it_gave_back_is_sent_in_order(items: tuple[InputItem, ...]) -> None:
    messages = translate(asking(*items))["messages"]
    made = answered_calls(items)

    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
    told = [message["content"] for message in messages if message["role"] == "tool"]
    attached = [piece for message in messages if is_attachment(message) for piece in pieces_of(message["content"])]

    assert names == [call.name for call, _ in made]
    for (call, output), text in zip(made, told, strict=True):
        if isinstance(output, str):
            assert text == output or (isinstance(call, McpCall) and call.status is not ItemStatus.COMPLETED)
        else:
            texts = [part.text for part in output if isinstance(part, InputPart)]
            assert text == "\n".join(texts) or (output and not texts)
    given_back = [part for _, output in made if not isinstance(output, str) for part in output]
    assert [piece for piece in attached if not isinstance(piece, str)] == [
        in_short(part) for part in given_back if not isinstance(part, InputPart)
    ]


@given(items=conversations(), field=st.sampled_from(["reasoning", "reasoning_content"]))
def test_every_thought_is_sent_to_an_upstream_that_takes_it_back(items: tuple[InputItem, ...], field: str) -> None:
    messages = translate(asking(*items), quirks=Quirks(reasoning_history=field))["messages"]

    thoughts = [item.content or item.summary for item in items if isinstance(item, InputReasoning)]
    sent = "".join(message[field] for message in messages if field in message)
    assert sent.replace("\n", "") == "".join(text for texts in thoughts for text in texts).replace("\n", "")
    assert all(message["role"] == "assistant" for message in messages if field in message)
    without = translate(asking(*items))["messages"]
    assert not any(field in message for message in without)


@given(
    request=response_requests().filter(lambda request: not any(isinstance(i, ItemReference) for i in request.input)),
    tools=offered_tools(*CallKind),
)
def test_every_option_that_an_upstream_knows_is_sent(request: ResponseRequest, tools: tuple[OfferedTool, ...]) -> None:
    request = attrs.evolve(request, tool_choice=attrs.evolve(request.tool_choice, name=None, allowed=None))
    body = translate(request, *tools)

    for ours, theirs in {
        "temperature": "temperature",
        "top_p": "top_p",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "max_output_tokens": "max_tokens",
        "verbosity": "verbosity",
        "user": "user",
    }.items():
        assert body.get(theirs) == getattr(request, ours)
    assert body.get("reasoning_effort") == (request.reasoning.effort if request.reasoning else None)
    assert body.get("logprobs", False) is (request.wants_logprobs or bool(request.top_logprobs))
    assert body.get("top_logprobs", 0) == (request.top_logprobs or 0)
    if request.instructions is not None:
        assert body["messages"][0] == {"role": "system", "content": request.instructions}
    match request.text_format:
        case JsonSchema() as asked:
            assert body["response_format"]["json_schema"]["schema"] == msgspec.json.decode(asked.schema)
        case PlainText():
            assert "response_format" not in body
        case _:
            assert body["response_format"] == {"type": "json_object"}
    offered = {tool["function"]["name"]: tool["function"] for tool in body.get("tools", [])}
    for tool in allowed_tools(tools, request.tool_choice):
        assert (tool.description or "") in offered[tool.name].get("description", "")
        if tool.parameters is not None and tool.kind is not CallKind.CUSTOM:
            assert offered[tool.name]["parameters"] == msgspec.json.decode(tool.parameters)


CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hmm"}]}


def read(*items: dict[str, Any], **members: Any) -> ResponseRequest:
    return parse_request({"model": "m", "input": list(items), **members})


def test_images_that_tools_gave_back_follow_all_tool_messages_of_the_turn() -> None:
    image = {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "low"}
    text = {"type": "input_text", "text": "Done."}
    request = read(
        {"role": "user", "content": "Draw."},
        CALL,
        {**CALL, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": [text, image]},
        {"type": "function_call_output", "call_id": "b", "output": [image]},
        {"role": "user", "content": "Thanks."},
    )

    sent = {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}}
    assert translate(request)["messages"][2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "Done."},
        {
            "role": "tool",
            "tool_call_id": "b",
            "content": "What this tool gave back follows as a message of the user.",
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "The tool call a gave back:"},
                sent,
                {"type": "text", "text": "The tool call b gave back:"},
                sent,
            ],
        },
        {"role": "user", "content": "Thanks."},
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            [THOUGHT, CALL, {"type": "function_call_output", "call_id": "a", "output": "x"}, THOUGHT],
            [("hmm", None, ["a"]), ("hmm", "", [])],
        ),
        ([THOUGHT, {"role": "assistant", "content": "Hi"}, THOUGHT], [("hmm", "Hi", []), ("hmm", "", [])]),
        ([THOUGHT, THOUGHT, {"role": "assistant", "content": "Hi"}], [("hmm\n\nhmm", "Hi", [])]),
        ([THOUGHT, {"role": "user", "content": "Hi"}], [("hmm", "", [])]),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}], [("s", "", [])]),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}], []),
    ],
)
def test_a_thought_goes_with_what_was_said_and_called_behind_it(items: list[dict[str, Any]], expected: Any) -> None:
    messages = translate(read(*items), quirks=Quirks(reasoning_history="reasoning"))["messages"]

    assert [
        (message["reasoning"], message["content"], [call["id"] for call in message.get("tool_calls", [])])
        for message in messages
        if message["role"] == "assistant"
    ] == expected


def test_of_the_current_turn_only_the_thoughts_behind_the_last_question_are_sent() -> None:
    items = (THOUGHT, {"role": "assistant", "content": "1"}, {"role": "user", "content": "?"}, THOUGHT)
    quirks = Quirks(reasoning_history="reasoning_content")

    for context, count in (("current_turn", 1), ("all_turns", 2), ("auto", 2)):
        body = translate(read(*items, reasoning={"context": context}), quirks=quirks)
        assert sum("reasoning_content" in message for message in body["messages"]) == count


def test_the_ids_that_a_client_sends_back_tell_which_turn_said_what() -> None:
    def made(turn: int, place: int) -> str:
        return f"{turn:032x}{place:02x}"

    items = (
        {"type": "message", "role": "assistant", "id": f"msg_{made(1, 0)}", "content": "Hi"},
        {**CALL, "id": f"fc_{made(2, 0)}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
    )

    roles = [(m["role"], m["content"]) for m in translate(read(*items))["messages"]]
    assert roles == [("assistant", "Hi"), ("assistant", None), ("tool", "x")]


def test_an_upstream_that_cannot_be_told_which_tool_to_call_is_offered_that_one_only() -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}]
    request = read({"role": "user", "content": "Hi"}, tools=tools, tool_choice={"type": "function", "name": "g"})
    offered = tuple(tool for tool in request.tools or () if isinstance(tool, OfferedTool))

    body = translate(request, *offered, quirks=Quirks(named_tool_choice=False))

    assert ([tool["function"]["name"] for tool in body["tools"]], body["tool_choice"]) == (["g"], "required")


def test_an_upstream_gets_its_own_words_for_an_effort() -> None:
    quirks = Quirks(efforts=(("xhigh", "high"),))

    for asked, sent in (("xhigh", "high"), ("low", "low")):
        request = asking(InputMessage(role=Role.USER, content=()), reasoning=ReasoningOptions(effort=asked))
        assert translate(request, quirks=quirks)["reasoning_effort"] == sent


def rows() -> list[tuple[str, str]]:
    """What the page says maps to what: a part of a request, and of a chat completion's."""
    pairs = re.findall(r"^\| `(\{.*\})` \| `(\{.*\})` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(pairs) > 20
    return pairs


@pytest.mark.parametrize(("asked", "sent"), rows())
def test_the_page_says_what_maps_to_what(asked: str, sent: str) -> None:
    request = parse_request({"model": "m", "input": "Hi"} | json.loads(asked))
    quirks = Quirks(reasoning_history="reasoning_content")

    body = translate(request, *(tool for tool in request.tools or () if isinstance(tool, OfferedTool)), quirks=quirks)

    for name, value in json.loads(sent).items():
        assert body.get(name) == value
