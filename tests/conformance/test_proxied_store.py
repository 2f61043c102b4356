"""Rows of calls that are handed over, in either store: leased like any other, and empty from the first moment."""

from uuid import uuid4

import pytest
from tests.conformance.conftest import CALL_S
from tests.conformance.responses import FAILED, OWNER, ROUTE, make_key

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import IdempotencyKeyHeld
from dwctl_trio.domain.idempotency import KeyHolder
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.domain.steps import ModelCall, Step, StepState
from dwctl_trio.domain.turn import ModelTurn
from dwctl_trio.domain.usage import Usage
from dwctl_trio.ports import CallMetering, EndedStep, FinishedResponse, NewChat
from dwctl_trio.protocol.chat_body import parse_chat, parse_completion, parse_embeddings

CALLS = {
    Surface.CHAT: parse_chat({"model": ROUTE.model, "messages": [{"role": "user"}], "store": True, "stream": True}),
    Surface.COMPLETIONS: parse_completion({"model": ROUTE.model, "prompt": "secret"}),
    Surface.EMBEDDINGS: parse_embeddings({"model": ROUTE.model, "input": "secret"}),
}
every_surface = pytest.mark.parametrize("surface", CALLS)


def make_call(surface: Surface, **fields: object) -> NewChat:
    """A call of each kind, as it is opened."""
    return NewChat(
        **{"response_id": uuid4(), "owner": OWNER, "key_prefix": None, "request": CALLS[surface], "route": ROUTE}
        | fields
    )


def finish(new: NewChat, state: RowState = RowState.COMPLETED) -> FinishedResponse:
    """Its end, as the engine writes it."""
    error = FAILED.error if state is RowState.FAILED else None
    turn = ModelTurn(items=(), finish_reason=None, usage=Usage(input_tokens=5, output_tokens=0))
    step = Step(
        id=new.first_step_id,
        sequence=1,
        descriptor=ModelCall(),
        state=StepState(state.value),
        result=turn,
        error=error,
    )
    metering = CallMetering(route=ROUTE, http_status=200, error_code=None, started_ago_s=0.1, first_token_ago_s=None)
    return FinishedResponse(
        row=new.row,
        epoch=1,
        state=state,
        response_status=200 if error is None else 502,
        body=b'"secret"',
        error=error,
        ended=(EndedStep(step=step, metering=metering),),
        segments=(),
    )


@every_surface
async def test_an_opened_call_is_leased_and_holds_nothing_of_what_was_asked(lab, surface):
    store, new = lab.open_process(), make_call(surface)
    created_at = await store.open_response(new)
    row = (await lab.snapshot()).rows[new.response_id]
    assert (row.surface, row.state, row.epoch, row.deadline) == (surface.value, RowState.PROCESSING, 1, None)
    assert (row.store, row.request, row.tools, row.stream) == (False, None, None, new.request.stream)
    assert created_at == pytest.approx(await lab.now(), abs=CALL_S)
    assert (await store.renew_leases({new.response_id})).renewed == {new.response_id}


@every_surface
async def test_an_ended_call_is_metered_and_nobody_reads_it(lab, surface):
    store = lab.open_process()
    for state in (RowState.COMPLETED, RowState.FAILED, RowState.CANCELED):
        new = make_call(surface)
        await store.open_response(new)
        await store.finish_response(finish(new, state))
        seen = await lab.snapshot()
        row, record = seen.rows[new.response_id], seen.usage[new.first_step_id]
        assert (row.state, row.response, row.request) == (state, None, None)
        assert seen.steps[new.first_step_id].result is None
        assert (record.input_tokens, record.output_tokens, record.service_tier) == (5, 0, "auto")
        assert await store.read_response(new.response_id, OWNER) is None
        assert await store.read_chain(new.response_id, OWNER) == []
        assert await store.delete_response(new.response_id, OWNER) is False


@every_surface
async def test_a_call_whose_process_died_is_ended_as_abandoned_without_a_count(lab, surface):
    store, new = lab.open_process(), make_call(surface)
    await store.open_response(new)
    await lab.advance_clock(1000.0)
    assert new.response_id in await lab.open_process().rescue_expired()
    seen = await lab.snapshot()
    row, record = seen.rows[new.response_id], seen.usage[new.first_step_id]
    assert (row.state, row.error.type.value, record.error_code) == (RowState.FAILED, "step_abandoned", "step_abandoned")
    assert (record.input_tokens, record.output_tokens) == (None, None)


@every_surface
async def test_a_key_of_a_call_is_held_while_it_runs_and_once_it_has_succeeded(lab, surface):
    store, key = lab.open_process(), make_key()
    new = make_call(surface, idempotency=key)
    await store.open_response(new)
    with pytest.raises(IdempotencyKeyHeld):
        await store.open_response(make_call(Surface.CHAT, idempotency=key))
    await store.finish_response(finish(new))
    holder = KeyHolder(
        response_id=new.response_id,
        state=RowState.COMPLETED,
        is_stored=False,
        body_digest=key.body_digest,
        told=None,
    )
    assert await store.find_key_holder(OWNER, key.text) == holder
