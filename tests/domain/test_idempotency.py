"""What a repeat gets: the answer of the first, a wait, or an error that says what to do."""

from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwctl_trio.domain.errors import IdempotencyConflict
from dwctl_trio.domain.idempotency import IdempotencyKey, KeyHolder, Replay, answer_repeat, still_under_way
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState

KEY = IdempotencyKey(text="k", body_digest=b"a" * 32)
ENDED = KeyHolder(
    response_id=UUID(int=7), state=RowState.COMPLETED, is_stored=True, body_digest=KEY.body_digest, told=b"told"
)
holders = st.builds(
    KeyHolder,
    response_id=st.uuids(),
    state=st.sampled_from(RowState),
    is_stored=st.booleans(),
    body_digest=st.sampled_from([KEY.body_digest, b"b" * 32]),
    told=st.none() | st.binary(),
)


@given(holder=holders)
def test_a_repeat_is_answered_with_what_was_told_or_waits_or_is_refused(holder: KeyHolder) -> None:
    try:
        answer = answer_repeat(KEY, holder)
    except IdempotencyConflict as conflict:
        assert holder.body_digest != KEY.body_digest or (holder.state in TERMINAL_STATES and holder.told is None)
        assert conflict.retry_after_s is None, "it will never be otherwise"
        return
    assert holder.body_digest == KEY.body_digest
    if holder.state in TERMINAL_STATES:
        assert answer == Replay(response_id=holder.response_id, told=holder.told or b"")
    else:
        assert answer is None


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"body_digest": b"b" * 32}, "idempotency_key_reused", "another body"),
        ({"body_digest": b"b" * 32, "state": RowState.PROCESSING}, "idempotency_key_reused", "another body"),
        ({"told": None}, "idempotency_replay_unavailable", f"GET /v1/responses/{response_id_text(UUID(int=7))}"),
        ({"told": None, "is_stored": False}, "idempotency_replay_unavailable", "not stored"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(changed, code: str, words: str) -> None:
    with pytest.raises(IdempotencyConflict, match=words) as raised:
        answer_repeat(KEY, attrs.evolve(ENDED, **changed))

    assert raised.value.code == code


def test_a_response_that_is_still_under_way_may_be_asked_for_later() -> None:
    conflict = still_under_way(5.0)

    assert (conflict.code, conflict.retry_after_s) == ("idempotency_key_in_use", 5.0)
    assert "later with the same key" in str(conflict)
