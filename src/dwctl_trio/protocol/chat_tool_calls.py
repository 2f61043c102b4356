"""The tool calls of one turn, put together from whatever pieces an upstream sends.

Rule 1: a piece belongs to the call with its ``index``; without one, to the call with its id; without both, to the
newest call, or in an array of several pieces to the call at the same place.
Rule 2: nothing of a call is let out before its id and name are known; then they never change.
Rule 3: an id that never comes is derived from the step and the call's place, so it is the same after a resume.
Rule 4: no two calls of a turn have the same id, whatever the upstream says.
Rule 5: a custom tool takes text: what the model wrote as the one argument of a function comes out as that text, whole.

Source: OpenAI Chat Completions API reference, ``delta.tool_calls``; observed: Gemini (index 0 for every call),
vLLM (another id in every piece), Ollama (neither id nor index; arguments as an object).
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any
from uuid import UUID

import attrs
import msgspec

from dwctl_trio.domain.errors import UpstreamError
from dwctl_trio.domain.ids import synthetic_call_id
from dwctl_trio.domain.turn import ToolCallFragment
from dwctl_trio.protocol.chat_history import INPUT_NAME
from dwctl_trio.protocol.json import clean_text, encode


@attrs.define(eq=False)
class _Call:
    """One call, as far as it is known."""

    position: int
    call_id: str | None = None
    name: str | None = None
    first_id: str | None = None
    """The first id that the upstream gave, which is ``call_id`` unless another call had it before."""
    held: list[str] = attrs.field(factory=list)
    """Arguments that wait for the id or the name, or those of a custom tool for their end."""
    is_open: bool = False
    """Its first fragment has been let out."""


@attrs.frozen
class _Piece:
    """One entry of ``delta.tool_calls``; what is empty counts as absent."""

    index: int | None
    call_id: str | None
    name: str | None
    arguments: str

    @property
    def is_nothing(self) -> bool:
        """A piece that begins no call."""
        return self.call_id is None and self.name is None and not self.arguments


class ToolCallAssembler:
    """Fragments out of pieces.

    Args:
        step_id: The model step, for the ids that the upstream does not give.
        calls_max: Calls that one turn may have.
        admit: Cleans and counts a text of the upstream's; raises if there is too much of it.
        custom_tools: Names of the tools that take text.
    """

    def __init__(
        self, *, step_id: UUID, calls_max: int, admit: Callable[[str], str], custom_tools: AbstractSet[str]
    ) -> None:
        self._step_id = step_id
        self._calls_max = calls_max
        self._admit = admit
        self._custom_tools = custom_tools
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._legacy: _Call | None = None

    def feed(self, entries: object) -> list[ToolCallFragment]:
        """The fragments that one ``tool_calls`` value lets out.

        Raises:
            UpstreamError: Its shape is strange, or there are too many calls.
        """
        if not isinstance(entries, list):
            raise _malformed()
        fragments: list[ToolCallFragment] = []
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise _malformed()
            piece = self._read_piece(entry, entry.get("function"))
            call = self._find_call(piece, place=place, is_alone=len(entries) == 1)
            if call is not None:
                fragments += self._add(call, piece)
        return fragments

    def feed_legacy(self, function: object) -> list[ToolCallFragment]:
        """The fragments that one value of the deprecated ``function_call`` lets out: there is one call, without an id.

        Raises:
            UpstreamError: As in ``feed``.
        """
        piece = self._read_piece({}, function)
        if self._legacy is None:
            if piece.is_nothing:
                return []
            self._legacy = self._begin_call()
            self._legacy.call_id = synthetic_call_id(self._step_id, self._legacy.position)
        return self._add(self._legacy, piece)

    def finish(self) -> list[ToolCallFragment]:
        """The calls that still wait for an id, and those of custom tools, whole.

        Raises:
            UpstreamError: A call has no name: nobody could run it.
        """
        fragments: list[ToolCallFragment] = []
        for call in self._calls:
            if call.name is None:
                raise UpstreamError("The model's server sent a tool call without a name.")
            if call.call_id is None:
                call.call_id = synthetic_call_id(self._step_id, call.position)
            if call.name in self._custom_tools:
                call.held = [_read_input("".join(call.held))]
            if call.held or not call.is_open:
                fragments += self._let_out(call, "", is_whole=True)
        return fragments

    def _read_piece(self, entry: dict[str, Any], function: object) -> _Piece:
        if not isinstance(function, dict):
            if function is not None:
                raise _malformed()
            function = {}
        index = entry.get("index")
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = encode(arguments).decode()
        elif arguments is not None and not isinstance(arguments, str):
            raise _malformed()
        return _Piece(
            index if type(index) is int else None,
            self._read_text(entry.get("id")),
            self._read_text(function.get("name")),
            self._admit(arguments) if arguments else "",
        )

    def _read_text(self, value: object) -> str | None:
        return self._admit(value) if isinstance(value, str) and value else None

    def _find_call(self, piece: _Piece, *, place: int, is_alone: bool) -> _Call | None:
        """The call that *piece* belongs to; a new one if it is a first piece, None if it is nothing at all."""
        if piece.index is not None:
            call = self._by_index.get(piece.index)
            is_first = call is None or _is_other_call(piece, call)
        elif piece.call_id is not None and piece.call_id in self._by_id:
            return self._by_id[piece.call_id]
        else:
            place = len(self._calls) - 1 if is_alone else place
            call = self._calls[place] if 0 <= place < len(self._calls) else None
            is_first = call is None or _is_second(piece.call_id, call.first_id) or _is_second(piece.name, call.name)
        if is_first:
            call = None if piece.is_nothing else self._begin_call()
            if call is not None and piece.index is not None:
                self._by_index[piece.index] = call
        return call

    def _begin_call(self) -> _Call:
        if len(self._calls) == self._calls_max:
            raise UpstreamError("The model's server sent too many tool calls in one turn.")
        call = _Call(len(self._calls))
        self._calls.append(call)
        return call

    def _add(self, call: _Call, piece: _Piece) -> list[ToolCallFragment]:
        if call.call_id is None and piece.call_id is not None:
            is_taken = self._by_id.setdefault(piece.call_id, call) is not call
            call.first_id = piece.call_id
            call.call_id = synthetic_call_id(self._step_id, call.position) if is_taken else piece.call_id
        if call.name is None:
            call.name = piece.name
        return self._let_out(call, piece.arguments)

    def _let_out(self, call: _Call, arguments: str, *, is_whole: bool = False) -> list[ToolCallFragment]:
        if call.call_id is None or call.name is None or (call.name in self._custom_tools and not is_whole):
            if arguments:
                call.held.append(arguments)
            return []
        if call.held:
            arguments = "".join((*call.held, arguments))
            call.held.clear()
        if call.is_open and not arguments:
            return []
        call.is_open = True
        return [ToolCallFragment(position=call.position, call_id=call.call_id, name=call.name, arguments=arguments)]


def _read_input(arguments: str) -> str:
    """The text for a custom tool in *arguments*; all of them where the model wrote something else."""
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    text = decoded.get(INPUT_NAME) if isinstance(decoded, dict) else None
    return clean_text(text) if isinstance(text, str) else arguments


def _is_other_call(piece: _Piece, call: _Call) -> bool:
    """Whether an index is used again for a whole new call; only another id in a later piece is not that."""
    return (
        _is_second(piece.name, call.name)
        and _is_second(piece.call_id, call.first_id)
        and piece.call_id != call.first_id
    )


def _is_second(given: str | None, known: str | None) -> bool:
    """Whether there are two of what a call has one of."""
    return given is not None and known is not None


def _malformed() -> UpstreamError:
    return UpstreamError("The model's server sent a tool call of a wrong shape.")
