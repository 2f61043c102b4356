"""The conversation so far as chat messages.

Rule 1: what one model turn said and called is one assistant message, as far as we know what one turn was.
Rule 2: right after it comes exactly one tool message for each of its calls, in their order, wherever the outputs stood.
Rule 3: a call without an output was cut short and is left out.
Rule 4: images and files that tools gave back follow the tool messages of their turn, for those hold text only.
Rule 5: reasoning goes with what its turn said and called, to upstreams that have a field for it; others get none.

Source: OpenAI Chat Completions API reference, "Create chat completion", ``messages``.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, assert_never

import attrs
import msgspec

from dwctl_trio.domain import ids
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
    full_name,
)
from dwctl_trio.domain.request import (
    CallOutput,
    CustomToolCallOutput,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputReasoning,
    ItemReference,
    Role,
)
from dwctl_trio.protocol import json
from dwctl_trio.protocol.chat_parts import ChatContent, output_text, render_attachments, render_content

INPUT_NAME: Final = "input"
"""Of the one argument that a custom tool has, seen as a function."""

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_UNNAMABLE = re.compile(r"[^A-Za-z0-9_-]")
"""A model may call what nobody could have offered; an upstream would refuse its name."""
_NAME_CHARACTERS_MAX = 128
_NOT_RUN = "The tool was not run, or was broken off before it had ended."


def render_history(
    items: Sequence[InputItem],
    output: Sequence[OutputItem],
    *,
    developer_role: bool,
    reasoning_field: str | None = None,
    reasoning_context: str | None = None,
) -> list[dict[str, Any]]:
    """The messages of a conversation.

    Args:
        items: The request's input, oldest first.
        output: What the response has come to so far.
        developer_role: Whether the upstream knows the role ``developer``; it gets ``system`` otherwise.
        reasoning_field: What the upstream calls the reasoning of an assistant message; None: it takes none.
        reasoning_context: Whose reasoning it is shown: ``current_turn`` is what came after the last message of the
            user, anything else is all.
    """
    history = _History(reasoning_field)
    conversation: list[InputItem | OutputItem] = [*items, *output]
    answers = _match_outputs(conversation)
    shows_from = _last_question(conversation) if reasoning_context == "current_turn" else 0
    for place, item in enumerate(conversation):
        match item:
            case InputMessage(role=Role.ASSISTANT):
                history.say(render_content(item.content), turn=_turn_of(item.id))
            case InputMessage():
                is_renamed = item.role is Role.DEVELOPER and not developer_role
                history.add(Role.SYSTEM if is_renamed else item.role, render_content(item.content))
            case Message():
                history.say(_text(item), turn=_turn_of(item.id))
            case Reasoning() | InputReasoning():
                if place >= shows_from:
                    history.think(_thoughts(item), turn=_turn_of(item.id))
            case ItemReference():
                raise AssertionError("references are resolved before a model is called")
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

    content: ChatContent | None = None
    reasoning: str = ""
    turn: str | None = None
    calls: dict[str, tuple[dict[str, Any], CallOutput]] = attrs.field(factory=dict)
    """Each call with its answer, by call id."""

    def may_be_of(self, turn: str | None) -> bool:
        """Whether nothing says that what is of *turn* belongs elsewhere."""
        return self.turn is None or turn is None or self.turn == turn

    def takes(self, turn: str | None) -> bool:
        """Whether what is said in *turn* goes on here: after words and calls, only what is known to."""
        if self.content is None and not self.calls:
            return self.may_be_of(turn)
        return turn is not None and self.turn == turn


class _History:
    """Messages in the making; the last one from the assistant may still grow."""

    def __init__(self, reasoning_field: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning_field = reasoning_field
        self._open: _AssistantMessage | None = None

    def add(self, role: Role, content: ChatContent) -> None:
        """Somebody else speaks."""
        self.close()
        self.messages.append({"role": role.value, "content": content})

    def think(self, thoughts: str, *, turn: str | None) -> None:
        """The assistant thinks: before it speaks, unless it is known to go on with the same turn."""
        if self._reasoning_field is None or not thoughts:
            return
        current = self._open
        if current is None or not current.takes(turn):
            current = self._begin()
        current.turn = current.turn or turn
        current.reasoning = "\n\n".join(text for text in (current.reasoning, thoughts) if text)

    def say(self, content: ChatContent, *, turn: str | None) -> None:
        """The assistant speaks: in a message of its own, unless it is known to be of the same turn."""
        current = self._open
        if current is None or not current.takes(turn):
            current = self._begin()
        current.turn = current.turn or turn
        if current.content is None:
            current.content = content
        elif isinstance(current.content, str) and isinstance(content, str):
            current.content += content
        else:
            current = self._begin()
            current.content, current.turn = content, turn

    def call(self, call: ToolCallItem, answer: CallOutput) -> None:
        """The assistant calls: in the message that is open, unless that is known to be of another turn."""
        turn, current = _turn_of(call.id), self._open
        # A model's call ids may be the same in the next turn.
        if current is None or not current.may_be_of(turn) or call.call_id in current.calls:
            current = self._begin()
        current.turn = current.turn or turn
        current.calls[call.call_id] = (_tool_call(call), answer)

    def _begin(self) -> _AssistantMessage:
        self.close()
        self._open = _AssistantMessage()
        return self._open

    def end_calls(self) -> None:
        """Outputs were given: what is called from here on is another turn's."""
        if self._open is not None and self._open.calls:
            self.close()

    def close(self) -> None:
        """Nothing more is added to the message that is open."""
        current, self._open = self._open, None
        if current is None:
            return
        said: dict[str, Any] = {"role": "assistant", "content": current.content}
        if current.reasoning:
            assert self._reasoning_field is not None, "other upstreams are not shown any"
            said[self._reasoning_field] = current.reasoning
        if not current.calls:
            if current.reasoning or current.content or (current.content is not None and current.turn is None):
                self.messages.append(said | {"content": current.content or ""})
            return
        calls = [call for call, _ in current.calls.values()]
        self.messages.append(said | {"content": current.content or None, "tool_calls": calls})
        for call_id, (_, answer) in current.calls.items():
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": output_text(answer)})
        attached = render_attachments((call_id, answer) for call_id, (_, answer) in current.calls.items())
        if attached:
            self.messages.append({"role": "user", "content": attached})


def _last_question(conversation: Sequence[InputItem | OutputItem]) -> int:
    """The place of the last message of the user."""
    places = [at for at, item in enumerate(conversation) if isinstance(item, InputMessage) and item.role is Role.USER]
    return places[-1] if places else 0


def _thoughts(item: Reasoning | InputReasoning) -> str:
    """The reasoning itself, or what is told of it."""
    if isinstance(item, Reasoning):
        return "\n\n".join(part.text for part in item.content)
    return "\n\n".join(item.content or item.summary)


def _match_outputs(conversation: Sequence[InputItem | OutputItem]) -> dict[int, CallOutput]:
    """The outputs by the places of the calls that they answer."""
    waiting: dict[str, int] = {}
    answers: dict[int, CallOutput] = {}
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
    name = call.name if isinstance(call, McpCall) else full_name(call.namespace, call.name)
    function = {"name": _UNNAMABLE.sub("_", name)[:_NAME_CHARACTERS_MAX], "arguments": _arguments(call)}
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


def _turn_of(item_id: str | None) -> str | None:
    """What the ids of a turn's items have in common, if they are made as ours are; OpenAI's have nothing."""
    return ids.item_maker(item_id or "")


def _text(message: Message) -> str:
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in message.content)
