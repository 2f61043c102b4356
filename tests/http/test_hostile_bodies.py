"""Thousands of hostile bodies over real sockets: each gets the answer that it must get, and soon."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.http.conftest import WAIT_S, assert_serves, error_of
from tests.http.hostile_bodies import JSON, VALID, Hostile, hostile_bodies
from tests.http.request_faults import Fault, faults, spoil
from tests.http.request_grammar import REQUEST, SERVER_TOOLS

from dwctl_trio.testing.request_strategies import SERVER_TOOL_NAMES, request_bodies
from dwctl_trio.testing.service import Service, open_service

CLIENTS = 4
EXAMPLES = 300
BODIES_MIN = 3000


@pytest.fixture
async def patient_service(postgres_dsn: str) -> AsyncIterator[Service]:
    """The service, which refuses nobody because the test beside it keeps its event loop busy."""
    tool = {
        "kind": "http",
        "url": "https://tools.example/never-called",
        "description": "d",
        "parameters": {"type": "object"},
    }
    overrides = {
        "limits": {"loop_delay_s": 60},
        "tools": [{"name": name, **tool} for name in SERVER_TOOLS],
        "models": [{"name": "*", "upstream": "simulator", "tools": list(SERVER_TOOLS)}],
    }
    async with open_service(postgres_dsn, overrides) as service:
        yield service


def check(hostile: Hostile, answer: httpx.Response) -> str | None:
    """What is wrong with the answer to *hostile*."""
    if answer.status_code != hostile.status:
        return f"{hostile.why}: {answer.status_code}, expected {hostile.status}: {answer.text[:200]}"
    if answer.status_code == 200:
        return None
    error = error_of(answer)
    is_right = (error["param"], error["type"]) == (hostile.param, "invalid_request_error") and error["code"]
    return None if is_right else f"{hostile.why}: param {error['param']!r:.80}, expected {hostile.param!r:.80}: {error}"


@pytest.mark.slow
async def test_thousands_of_hostile_bodies_get_the_answers_that_they_must_get(patient_service: Service) -> None:
    service, waiting = patient_service, list(hostile_bodies())
    count, began_at = len(waiting), trio.current_time()
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    slowest = (0.0, "")

    async def send_all() -> None:
        nonlocal slowest
        while waiting:
            hostile = waiting.pop()
            asked_at = trio.current_time()
            with trio.fail_after(WAIT_S):
                answer = await service.client.post("/v1/responses", content=hostile.body, headers=list(hostile.headers))
            slowest = max(slowest, (trio.current_time() - asked_at, hostile.why))
            statuses[answer.status_code] += 1
            fault = check(hostile, answer)
            if fault is not None:
                wrong.append(fault)

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(send_all)
    seconds = trio.current_time() - began_at
    print(
        f"{count} hostile bodies in {seconds:.1f} s: {dict(sorted(statuses.items()))}, {len(wrong)} wrong,"
        f" 0 hangs, the slowest took {slowest[0]:.2f} s ({slowest[1]})"
    )
    assert not wrong, "\n".join(wrong)
    assert count >= BODIES_MIN
    assert statuses.total() == count
    assert not any(status >= 500 for status in statuses)
    await assert_serves(service)


def test_the_tools_that_are_drawn_are_the_servers() -> None:
    assert set(SERVER_TOOL_NAMES) == set(SERVER_TOOLS)


def test_every_hostile_body_is_made_the_same_way_each_time() -> None:
    assert hostile_bodies() == hostile_bodies()


def test_the_grammar_breaks_every_parameter_of_its_own() -> None:
    assert REQUEST.fields is not None
    named = {fault.place[0] for valid in VALID for fault in faults(REQUEST, valid)}

    assert set(REQUEST.fields) <= named


def _stands_alone(body: dict[str, Any]) -> bool:
    """Whether nothing is wrong with *body* yet, and no earlier response is needed for it."""
    return (body.get("tools"), body["tool_choice"]) != ([], "required") and "previous_response_id" not in body


@st.composite
def faulty_requests(draw: st.DrawFn) -> tuple[dict[str, Any], Fault]:
    """Any valid body, and one thing wrong with it."""
    body = draw(request_bodies().filter(_stands_alone))
    return body, draw(st.sampled_from(list(faults(REQUEST, body))))


@pytest.mark.slow
async def test_any_request_with_one_fault_is_refused_by_the_name_of_the_fault(patient_service: Service) -> None:
    service, statuses = patient_service, Counter[int]()

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(faulty_requests())
    def post(drawn: tuple[dict[str, Any], Fault]) -> None:
        body, fault = drawn
        hostile = Hostile(why=repr(fault)[:200], body=spoil(body, fault), param=fault.param)
        answer = client.post("/v1/responses", content=hostile.body, headers=list(JSON))
        statuses[answer.status_code] += 1
        problem = check(hostile, answer)
        assert problem is None, problem

    with httpx.Client(base_url=service.url, timeout=WAIT_S, trust_env=False) as client:
        await trio.to_thread.run_sync(post)
    print(f"{statuses.total()} requests with one fault each: {dict(statuses)}")
    assert set(statuses) == {400}
    await assert_serves(service)
