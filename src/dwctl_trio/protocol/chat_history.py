"""The conversation so far as chat messages.

Rule 1: what one model turn said and called is one assistant message, as far as we know what one turn was.
Rule 2: right after it comes exactly one tool message for each of its calls, in their order, wherever the outputs stood.
Rule 3: a call without an output was cut short and is left out; reasoning is, too: chat completions has no place for it.

Source: OpenAI Chat Completions API reference, "Create chat completion", ``messages``.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, assert_never

import attrs
import msgspec

from dwctl_trio.domain.items import (
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    RefusalPart,
    ToolCallItem,
)
from dwctl_trio.domain.request import CustomToolCallOutput, FunctionCallOutput, InputItem, InputMessage, Role
from dwctl_trio.protocol import json

INPUT_NAME: Final = "input"
"""Of the one argument that a custom tool has, seen as a function."""

_Content: TypeAlias = str | list[dict[str, str]]

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]+")
_UNNAMABLE = re.compile(r"[^A-Za-z0-9_-]")
"""A model may call what nobody could have offered; an upstream would refuse its name."""
_NAME_CHARACTERS_MAX = 128
_NOT_RUN = "The tool was not run, or was broken off before it had ended."


def render_history(
    items: Sequence[InputItem], output: Sequence[OutputItem], *, developer_role: bool
) -> list[dict[str, Any]]:
    """The messages of a conversation.

    Args:
        items: The request's input, oldest first.
        output: What the response has come to so far.
        developer_role: Whether the upstream knows the role ``developer``; it gets ``system`` otherwise.
    """
    history = _History()
    conversation: list[InputItem | OutputItem] = [*items, *output]
    answers = _match_outputs(conversation)
    for place, item in enumerate(conversation):
        match item:
            case InputMessage(role=Role.ASSISTANT):
                history.say(_content(item), turn=None)
            case InputMessage():
                is_renamed = item.role is Role.DEVELOPER and not developer_role
                history.add(Role.SYSTEM if is_renamed else item.role, _content(item))
            case Message():
                history.say(_text(item), turn=_turn_of(item.id))
            case Reasoning():
                pass
            case FunctionCallOutput() | CustomToolCallOutput():
                history.end_calls()
            case FunctionCall() | CustomToolCall() | McpCall():
                answer = _outcome(item) if isinstance(item, McpCall) else answers.get(place)
                if answer is not None:
                    history.call(item, answer)
            case _ as never:
                assert_never(never)
    history.close()
    return history.messages


@attrs.define(eq=False, kw_only=True)
class _AssistantMessage:
    """What one turn said and called, as far as it is known."""

    content: _Content | None = None
    turn: str | None = None
    calls: dict[str, tuple[dict[str, Any], str]] = attrs.field(factory=dict)
    """Each call with its answer, by call id."""


class _History:
    """Messages in the making; the last one from the assistant may still grow."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._open: _AssistantMessage | None = None

    def add(self, role: Role, content: _Content) -> None:
        """Somebody else speaks."""
        self.close()
        self.messages.append({"role": role.value, "content": content})

    def say(self, content: _Content, *, turn: str | None) -> None:
        """The assistant speaks: in a message of its own, unless it is known to be of the same turn."""
        current = self._open
        if current is not None and turn is not None and current.turn == turn and not isinstance(current.content, list):
            assert isinstance(content, str), "only what a client sent has parts"
            current.content = (current.content or "") + content
            return
        self.close()
        self._open = _AssistantMessage(content=content, turn=turn)

    def call(self, call: ToolCallItem, answer: str) -> None:
        """The assistant calls: in the message that is open, unless that is known to be of another turn."""
        turn, current = _turn_of(call.id), self._open
        is_other = current is not None and None not in (current.turn, turn) and current.turn != turn
        # A model's call ids may be the same in the next turn.
        if current is None or is_other or call.call_id in current.calls:
            self.close()
            current = self._open = _AssistantMessage()
        current.turn = current.turn or turn
        current.calls[call.call_id] = (_tool_call(call), answer)

    def end_calls(self) -> None:
        """Outputs were given: what is called from here on is another turn's."""
        if self._open is not None and self._open.calls:
            self.close()

    def close(self) -> None:
        """Nothing more is added to the message that is open."""
        current, self._open = self._open, None
        if current is None:
            return
        if not current.calls:
            if current.content is not None and (current.content or current.turn is None):
                self.messages.append({"role": "assistant", "content": current.content})
            return
        calls = [call for call, _ in current.calls.values()]
        self.messages.append({"role": "assistant", "content": current.content or None, "tool_calls": calls})
        for call_id, (_, answer) in current.calls.items():
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": answer})


def _match_outputs(conversation: Sequence[InputItem | OutputItem]) -> dict[int, str]:
    """The outputs by the places of the calls that they answer."""
    waiting: dict[str, int] = {}
    answers: dict[int, str] = {}
    for place, item in enumerate(conversation):
        match item:
            case FunctionCall() | CustomToolCall():
                waiting[item.call_id] = place
            case FunctionCallOutput() | CustomToolCallOutput() if item.call_id in waiting:
                answers[waiting.pop(item.call_id)] = item.output
            case _:
                pass
    return answers


def _outcome(call: McpCall) -> str:
    """What became of *call*, as the model reads it."""
    if call.status is ItemStatus.COMPLETED:
        return call.output or ""
    message = call.error if call.status is ItemStatus.FAILED else _NOT_RUN
    return json.encode({"error": message}).decode()


def _tool_call(call: ToolCallItem) -> dict[str, Any]:
    function = {"name": _UNNAMABLE.sub("_", call.name)[:_NAME_CHARACTERS_MAX], "arguments": _arguments(call)}
    return {"id": call.call_id, "type": "function", "function": function}


def _arguments(call: ToolCallItem) -> str:
    """The arguments as they were written, if they are an object; upstreams refuse a history with any others."""
    if not isinstance(call, CustomToolCall):
        if not call.arguments.strip():
            return "{}"
        if _is_object(call.arguments):
            return call.arguments
    return json.encode({INPUT_NAME: call.arguments}).decode()


def _is_object(text: str) -> bool:
    try:
        _OBJECT.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _turn_of(item_id: str) -> str | None:
    """What the ids of a turn's items have in common, if they are made as ours are (``domain/ids.py``)."""
    found = _ITEM_ID.fullmatch(item_id)
    return found[1] if found else None


def _text(message: Message) -> str:
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in message.content)


def _content(message: InputMessage) -> _Content:
    """The message's parts in order; an earlier refusal is text too, which every engine's template understands."""
    if not message.content:
        return ""
    if len(message.content) == 1:
        return message.content[0].text
    return [{"type": "text", "text": part.text} for part in message.content]
