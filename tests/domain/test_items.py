"""The visible text of an output."""

import pytest
from hypothesis import given

from dwctl_trio.domain.items import CALL_TYPES, CallKind, ItemStatus, call_kind, output_text
from dwctl_trio.domain.response import Completed
from dwctl_trio.domain.turn import ContentFragment, FinishReason, TextFragment
from dwctl_trio.testing.domain_strategies import fragments
from dwctl_trio.testing.example_runs import EVERY_KIND, run, turn


@given(content=fragments())
def test_the_visible_text_is_all_text_fragments_and_nothing_else(content: tuple[ContentFragment, ...]) -> None:
    output = run(Completed(), turn(*content, reason=FinishReason.STOP)).response.output
    assert output_text(output) == "".join(piece.text for piece in content if isinstance(piece, TextFragment))


def test_reasoning_refusals_and_calls_are_not_visible_text() -> None:
    assert output_text(EVERY_KIND.response.output) == "ab"


@pytest.mark.parametrize("kind", CallKind)
def test_the_type_of_a_call_says_its_kind(kind: CallKind) -> None:
    call = CALL_TYPES[kind](id="x_1", status=ItemStatus.IN_PROGRESS, call_id="call_1", name="search")
    assert call_kind(call) is kind
