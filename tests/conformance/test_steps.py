"""The steps of a response, stored as they end and open: the same of the fake and of PostgreSQL."""

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from tests.conformance.conftest import CALL_S, LIMITS, Lab, MemoryLab, open_postgres_lab
from tests.conformance.responses import (
    OWNER,
    ended_model,
    ended_tool,
    make_finished,
    make_new,
    make_request,
    model_step,
    storable_texts,
    tool_step,
)

from dwctl_trio.domain.errors import LeaseLost
from dwctl_trio.domain.items import CallKind
from dwctl_trio.domain.steps import Step
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.ports import EndedStep, NewResponse, Progress
from dwctl_trio.testing.faulty_store import Store

TOOLS = (
    OfferedTool(kind=CallKind.SERVER, name="search", description="Finds things.", parameters=b'{"type":"object"}'),
    OfferedTool(kind=CallKind.FUNCTION, name="mine", strict=True, parameters=b"{}"),
)


def progress(new: NewResponse, *ended: EndedStep, opened: tuple[Step, ...] = (), epoch: int = 1) -> Progress:
    return Progress(row=new.row, epoch=epoch, ended=ended, opened=opened)


async def open_round(store: Store, new: NewResponse) -> tuple[Step, Step]:
    """A response whose model has called two tools."""
    await store.open_response(new)
    tools = (tool_step(new, 2), tool_step(new, 3, "not JSON"))
    await store.advance_response(progress(new, ended_model(model_step(new, 1), "I will search."), opened=tools))
    return tools


async def test_the_end_of_a_step_and_the_next_steps_are_one_write(lab):
    store, new = lab.open_process(), make_new()
    tools = await open_round(store, new)
    chain = await store.read_chain(new.response_id, OWNER)
    assert list(chain) == [ended_model(model_step(new, 1), "I will search.").step, *tools]
    assert set((await lab.snapshot()).usage) == {new.first_step_id}


async def test_tools_end_one_by_one_and_only_model_calls_are_metered(lab):
    store, new = lab.open_process(), make_new()
    first, second = await open_round(store, new)
    await store.advance_response(progress(new, ended_tool(second, None)))
    between = await store.read_chain(new.response_id, OWNER)
    await store.advance_response(progress(new, ended_tool(first, "found \u2028 it"), opened=(model_step(new, 4),)))
    chain = await store.read_chain(new.response_id, OWNER)
    assert list(between[1:]) == [first, ended_tool(second, None).step]
    assert list(chain[1:]) == [
        ended_tool(first, "found \u2028 it").step,
        ended_tool(second, None).step,
        model_step(new, 4),
    ]
    assert set((await lab.snapshot()).usage) == {new.first_step_id}


async def test_a_sub_agents_steps_know_their_parent(lab):
    store, new = lab.open_process(), make_new()
    agent, _ = await open_round(store, new)
    child = model_step(new, 4, parent=agent)
    await store.advance_response(progress(new, opened=(child,)))
    assert (await store.read_chain(new.response_id, OWNER))[3] == child


async def test_a_write_whose_answer_was_lost_may_be_made_again(lab):
    store, new = lab.open_process(), make_new()
    first, second = await open_round(store, new)
    write = progress(new, ended_tool(first, "x"), ended_tool(second, "y"), opened=(model_step(new, 4),))
    await store.advance_response(write)
    before = (await lab.snapshot()).without_moments()
    await store.advance_response(write)
    assert (await lab.snapshot()).without_moments() == before


async def test_a_step_that_has_ended_stays_as_it_ended(lab):
    store, new = lab.open_process(), make_new()
    first, _ = await open_round(store, new)
    await store.advance_response(progress(new, ended_tool(first, "x")))
    await store.advance_response(progress(new, ended_tool(first, None)))
    assert (await store.read_chain(new.response_id, OWNER))[1] == ended_tool(first, "x").step


async def test_a_write_between_steps_extends_the_lease(lab):
    store, new = lab.open_process(), make_new()
    first, _ = await open_round(store, new)
    await lab.advance_clock(LIMITS.lease_s / 2)
    await store.advance_response(progress(new, ended_tool(first, "x")))
    row = (await lab.snapshot()).rows[new.response_id]
    assert row.lease_expires_at == pytest.approx(await lab.now() + LIMITS.lease_s, abs=CALL_S)


@pytest.mark.parametrize("epoch", [0, 2])
async def test_who_does_not_own_the_row_writes_no_step(lab, epoch):
    owner, other, new = lab.open_process(), lab.open_process(), make_new()
    first, _ = await open_round(owner, new)
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await other.advance_response(progress(new, ended_tool(first, "x"), opened=(model_step(new, 4),)))
    with pytest.raises(LeaseLost):
        await owner.advance_response(progress(new, ended_tool(first, "x"), epoch=epoch))
    assert await lab.snapshot() == before


async def test_no_step_is_written_of_a_response_that_has_ended(lab):
    store, new = lab.open_process(), make_new()
    first, second = await open_round(store, new)
    finished = make_finished(new)
    await store.finish_response(attrs.evolve(finished, ended=(ended_tool(first, "x"), ended_tool(second, "y"))))
    before = await lab.snapshot()
    with pytest.raises(LeaseLost):
        await store.advance_response(progress(new, opened=(model_step(new, 4),)))
    assert await lab.snapshot() == before
    assert list((await store.read_chain(new.response_id, OWNER))[1:]) == [
        ended_tool(first, "x").step,
        ended_tool(second, "y").step,
    ]


async def test_of_a_response_that_is_not_stored_no_arguments_and_no_outputs_are_kept(lab):
    store, new = lab.open_process(), make_new(make_request(store=False))
    first, second = await open_round(store, new)
    await store.advance_response(progress(new, ended_tool(first, "x")))
    snapshot = await lab.snapshot()
    assert {(step.request, step.result) for step in snapshot.steps.values()} == {(None, None)}
    assert snapshot.steps[second.id].name == "search"


@pytest.mark.slow
@given(arguments=storable_texts(), output=storable_texts())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments_and_any_output_come_back_as_they_went_in(conformance_dsn, arguments, output):
    async def check(lab: Lab) -> None:
        store, new = lab.open_process(), make_new()
        await store.open_response(new)
        call = tool_step(new, 2, arguments)
        await store.advance_response(progress(new, ended_model(model_step(new, 1), output), opened=(call,)))
        await store.advance_response(progress(new, ended_tool(call, output)))
        chain = await store.read_chain(new.response_id, OWNER)
        assert list(chain) == [ended_model(model_step(new, 1), output).step, ended_tool(call, output).step]

    async def run() -> None:
        with trio.fail_after(3 * CALL_S):
            await check(MemoryLab())
            async with open_postgres_lab(conformance_dsn) as lab:
                await check(lab)

    trio.run(run)
