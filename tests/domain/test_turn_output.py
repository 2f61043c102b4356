"""From fragments to items and events: nothing is lost, doubled or renamed, however the turn arrives."""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dwctl_trio.domain.events import (
    ArgumentsDelta,
    ContentDelta,
    ContentKind,
    ContentPartAdded,
    ItemEvent,
    McpCallCompleted,
    McpCallFailed,
    McpCallInProgress,
    OutputItemAdded,
    OutputItemDone,
)
from dwctl_trio.domain.items import (
    CustomToolCall,
    FunctionCall,
    ItemStatus,
    McpCall,
    Message,
    OutputItem,
    Reasoning,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallItem,
    call_kind,
)
from dwctl_trio.domain.tools import kind_of_call
from dwctl_trio.domain.turn import (
    AnnotationFragment,
    ContentFragment,
    FinishReason,
    ReasoningFragment,
    RefusalFragment,
    TextFragment,
    ToolCallFragment,
)
from dwctl_trio.domain.turn_output import TurnOutput, close_call, make_part
from dwctl_trio.testing.domain_strategies import fragments
from dwctl_trio.testing.example_runs import call
from dwctl_trio.testing.played_runs import OFFERED_TOOLS

_STEP = UUID(int=1)
_REASONS = st.none() | st.sampled_from(FinishReason)
_CUT_SHORT = {None, FinishReason.LENGTH, FinishReason.CONTENT_FILTER}
_Fragments = tuple[ContentFragment, ...]
_KIND_OF = partial(kind_of_call, OFFERED_TOOLS, OFFERED_TOOLS)


def _begin(first_output_index: int = 0) -> TurnOutput:
    return TurnOutput(step_id=_STEP, first_output_index=first_output_index, kind_of=_KIND_OF)


def _play(
    content: Sequence[ContentFragment], reason: FinishReason | None, *, first_output_index: int = 0
) -> tuple[tuple[OutputItem, ...], list[ItemEvent]]:
    output = _begin(first_output_index)
    events = [event for fragment in content for event in output.feed(fragment)]
    events += output.close(reason)
    return output.items(), events


@given(content=fragments(), reason=_REASONS)
def test_every_piece_of_text_is_in_the_items_once_and_in_order(
    content: _Fragments, reason: FinishReason | None
) -> None:
    items, _ = _play(content, reason)

    messages = [part for item in items if isinstance(item, Message) for part in item.content]
    thoughts = [part.text for item in items if isinstance(item, Reasoning) for part in item.content]
    assert [part.text for part in messages if isinstance(part, TextPart)] == _runs_of(content, TextFragment)
    assert [part.refusal for part in messages if isinstance(part, RefusalPart)] == _runs_of(content, RefusalFragment)
    assert "".join(thoughts) == "".join(piece.text for piece in content if isinstance(piece, ReasoningFragment))


def _runs_of(content: _Fragments, kind: type[TextFragment | RefusalFragment]) -> list[str]:
    """The texts of *kind*, joined where no other kind of message text stands between."""
    joined: list[tuple[type, str]] = []
    for piece in content:
        if isinstance(piece, TextFragment | RefusalFragment):
            if joined and joined[-1][0] is type(piece):
                joined[-1] = (type(piece), joined[-1][1] + piece.text)
            else:
                joined.append((type(piece), piece.text))
    return [text for own_kind, text in joined if own_kind is kind]


@given(content=fragments(), reason=_REASONS)
def test_every_call_is_one_item_with_all_of_its_arguments(content: _Fragments, reason: FinishReason | None) -> None:
    pieces = [piece for piece in content if isinstance(piece, ToolCallFragment)]

    items, _ = _play(content, reason)

    calls = {item.call_id: item for item in items if isinstance(item, ToolCallItem)}
    assert list(calls) == list(dict.fromkeys(piece.call_id for piece in pieces))
    assert [call.call_id for call in calls.values()] == [f"call_{place}" for place in range(len(calls))]
    for call_id, item in calls.items():
        own = [piece for piece in pieces if piece.call_id == call_id]
        assert (item.name, item.arguments) == (own[0].name, "".join(piece.arguments for piece in own))
        assert call_kind(item) is _KIND_OF(item.name)


@given(
    content=fragments(), reason=_REASONS, places=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3)), max_size=4)
)
def test_any_cutting_of_the_same_turn_gives_the_same_items(
    content: _Fragments, reason: FinishReason | None, places: list[tuple[int, int]]
) -> None:
    cut = list(content)
    for place, at in places:
        if place < len(cut):
            cut[place : place + 1] = _cut(cut[place], at)

    assert _play(cut, reason)[0] == _play(content, reason)[0]


def _cut(fragment: ContentFragment, at: int) -> list[ContentFragment]:
    if isinstance(fragment, AnnotationFragment):
        return [fragment]
    field = "arguments" if isinstance(fragment, ToolCallFragment) else "text"
    whole: str = getattr(fragment, field)
    if len(whole) <= at:
        return [fragment]
    rest = attrs.evolve(fragment, **{field: whole[at:]})
    if isinstance(rest, TextFragment):
        rest = attrs.evolve(rest, logprobs=())
    return [attrs.evolve(fragment, **{field: whole[:at]}), rest]


@given(content=fragments(), reason=_REASONS, first=st.integers(0, 5))
def test_items_are_added_and_done_once_each_at_consecutive_places_but_for_calls_that_the_server_will_run(
    content: _Fragments, reason: FinishReason | None, first: int
) -> None:
    items, events = _play(content, reason, first_output_index=first)

    places = list(range(first, first + len(items)))
    done = {event.output_index: event.item for event in events if isinstance(event, OutputItemDone)}
    assert [event.output_index for event in events if isinstance(event, OutputItemAdded)] == places
    closed = [place for place, item in zip(places, items, strict=True) if item.status is not ItemStatus.IN_PROGRESS]
    assert sorted(event.output_index for event in events if isinstance(event, OutputItemDone)) == closed
    assert all(done[place] == items[place - first] for place in closed)
    assert all(isinstance(items[place - first], McpCall) for place in places if place not in done)


@given(content=fragments(), reason=_REASONS)
def test_ids_follow_from_the_step_and_the_place_alone(content: _Fragments, reason: FinishReason | None) -> None:
    items, _ = _play(content, reason)

    prefixes = {Message: "msg", Reasoning: "rs", FunctionCall: "fc", CustomToolCall: "ctc", McpCall: "mcp"}
    assert [item.id for item in items] == [
        f"{prefixes[type(item)]}_{_STEP.hex}{place:x}" for place, item in enumerate(items)
    ]


@given(content=fragments(), reason=_REASONS)
@example(content=(TextFragment("a"), ReasoningFragment("b"), TextFragment("c")), reason=None)
def test_a_turn_that_stops_by_itself_leaves_nothing_incomplete(
    content: _Fragments, reason: FinishReason | None
) -> None:
    items, _ = _play(content, reason)

    closed_early = {item.id for item in items if isinstance(item, Reasoning)}
    said = [fragment for fragment in content if not isinstance(fragment, AnnotationFragment)]
    if items and isinstance(items[-1], Reasoning) and isinstance(said[-1], ReasoningFragment):
        closed_early.remove(items[-1].id)
    expected = ItemStatus.INCOMPLETE if reason in _CUT_SHORT else ItemStatus.COMPLETED
    for item in items:
        is_to_run = isinstance(item, McpCall) and reason not in _CUT_SHORT
        whole = ItemStatus.IN_PROGRESS if is_to_run else expected
        assert item.status is (ItemStatus.COMPLETED if item.id in closed_early else whole)


@given(content=fragments())
def test_what_is_shown_at_any_moment_is_what_stays_if_the_turn_is_cut_there(content: _Fragments) -> None:
    output = _begin()
    for fragment in content:
        output.feed(fragment)

    before = output.items()
    output.close(None)

    assert output.items() == before


@given(content=fragments())
def test_every_fragment_is_told_at_once_but_for_an_empty_piece_of_a_known_call(content: _Fragments) -> None:
    output = _begin()
    known: set[int] = set()
    for fragment in content:
        events = output.feed(fragment)

        told = [event.delta for event in events if isinstance(event, ContentDelta | ArgumentsDelta)]
        if isinstance(fragment, ToolCallFragment):
            assert told == ([fragment.arguments] if fragment.arguments else [])
            assert events or fragment.position in known
            known.add(fragment.position)
        elif isinstance(fragment, AnnotationFragment):
            assert told == []
        else:
            assert told == [fragment.text]


@given(content=fragments(), reason=_REASONS)
def test_closing_twice_says_nothing_more(content: _Fragments, reason: FinishReason | None) -> None:
    output = _begin()
    for fragment in content:
        output.feed(fragment)
    output.close(reason)
    closed = output.items()

    assert output.close(None) == []
    assert output.items() == closed


@given(content=fragments(), reason=_REASONS)
@example(content=(TextFragment("a"), ReasoningFragment("b"), TextFragment("c")), reason=FinishReason.STOP)
def test_a_turn_has_one_message_at_most(content: _Fragments, reason: FinishReason | None) -> None:
    items, _ = _play(content, reason)
    assert sum(isinstance(item, Message) for item in items) <= 1


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (FinishReason.STOP, ItemStatus.COMPLETED),
        (FinishReason.TOOL_CALLS, ItemStatus.COMPLETED),
        (FinishReason.LENGTH, ItemStatus.INCOMPLETE),
        (FinishReason.CONTENT_FILTER, ItemStatus.INCOMPLETE),
        (None, ItemStatus.INCOMPLETE),
    ],
)
def test_the_finish_reason_decides_whether_open_items_are_whole(
    reason: FinishReason | None, status: ItemStatus
) -> None:
    items, _ = _play([TextFragment("a"), call(0, "{")], reason)
    assert [item.status for item in items] == [status, status]


def test_text_goes_on_in_the_same_part_after_reasoning_came_between() -> None:
    items, events = _play([TextFragment("a"), ReasoningFragment("b"), TextFragment("c")], FinishReason.STOP)

    assert [type(item) for item in items] == [Message, Reasoning]
    assert items[0].content == (TextPart(text="ac"),)
    assert sum(isinstance(event, ContentPartAdded) for event in events) == 2


def test_reasoning_that_comes_again_after_something_else_is_a_new_item() -> None:
    items, _ = _play([ReasoningFragment("a"), TextFragment("b"), ReasoningFragment("c")], None)

    assert [type(item) for item in items] == [Reasoning, Message, Reasoning]
    assert [item.status for item in items] == [ItemStatus.COMPLETED, ItemStatus.INCOMPLETE, ItemStatus.INCOMPLETE]


def test_a_refusal_after_text_is_the_next_part_of_the_same_message() -> None:
    items, _ = _play([TextFragment("well, "), RefusalFragment("no")], FinishReason.STOP)

    assert [item.content for item in items] == [(TextPart(text="well, "), RefusalPart(refusal="no"))]


def test_parallel_calls_interleave() -> None:
    _, events = _play([call(0, "{"), call(1, "["), call(0, "}"), call(1, "]")], FinishReason.TOOL_CALLS)

    told = [(event.output_index, event.delta) for event in events if isinstance(event, ArgumentsDelta)]
    assert told == [(0, "{"), (1, "["), (0, "}"), (1, "]")]


def test_a_call_of_the_servers_says_that_it_is_in_progress_before_its_first_argument() -> None:
    _, events = _play([call(0, "{", name="search"), call(1, "{")], None)

    place = next(index for index, event in enumerate(events) if isinstance(event, McpCallInProgress))
    assert isinstance(events[place - 1], OutputItemAdded)
    assert isinstance(events[place + 1], ArgumentsDelta)
    assert sum(isinstance(event, McpCallInProgress) for event in events) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("get_weather", FunctionCall), ("run_code", CustomToolCall), ("search", McpCall)]
)
def test_a_call_has_its_final_id_name_and_call_id_when_it_is_added(name: str, kind: type) -> None:
    (item,), events = _play([call(0, "", name=name), call(0, "{}", name=name)], FinishReason.TOOL_CALLS)

    added = events[0].item
    assert type(added) is type(item) is kind
    assert (added.id, added.name, added.call_id) == (item.id, name, "call_0")


_CALL = McpCall(id="mcp_1", status=ItemStatus.IN_PROGRESS, call_id="call_0", name="search")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (attrs.evolve(_CALL, status=ItemStatus.COMPLETED, output="x"), [McpCallCompleted(3, "mcp_1")]),
        (attrs.evolve(_CALL, status=ItemStatus.FAILED, error="no"), [McpCallFailed(3, "mcp_1")]),
        (attrs.evolve(_CALL, status=ItemStatus.INCOMPLETE), []),
    ],
)
def test_the_end_of_a_call_is_said_and_then_the_item_is_done(call: McpCall, said: list[ItemEvent]) -> None:
    assert close_call(3, call) == [*said, OutputItemDone(3, call)]


def test_a_silent_turn_has_no_items_and_no_events() -> None:
    assert _play([], FinishReason.STOP) == ((), [])


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (ContentKind.TEXT, TextPart(text="a")),
        (ContentKind.REFUSAL, RefusalPart(refusal="a")),
        (ContentKind.REASONING, ReasoningPart(text="a")),
    ],
)
def test_each_kind_of_content_has_its_part(kind: ContentKind, part: object) -> None:
    assert make_part(kind, "a") == part
