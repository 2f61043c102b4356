"""What the whole server does for an event and for a response, counted: writes, commits and turns of tasks."""

from collections.abc import AsyncIterator

import attrs
import httpx
import pytest
import trio

from dwctl_trio.testing.service import Service, open_service

WAIT_S = 15.0
EVENTS_BESIDE_TOKENS = 8
"""Of a response with one text."""
WRITES_MAX = 4
"""For 200 tokens that come at once. Measured: 2, the opening and the rest; the others are for reads that TCP cuts."""
COMMITS_MAX = 2
"""For one response."""
HEARTBEATS_MAX = 5
"""Of the process, while the responses are worked on."""
TURNS_MAX = 2.5
"""Of the server's tasks for one event, when each comes by itself. Measured: 2.2."""
WHAT_TO_DO = """
This counts, and measures no time: it fails because something was added to the path of every event or response. Run
`pytest -s tests/performance` there and on the branch that you came from, and look at what differs. If it is worth it,
raise the bound, and say in the commit what for."""


@pytest.fixture
async def service(postgres_dsn: str) -> AsyncIterator[Service]:
    async with open_service(postgres_dsn) as service:
        yield service


@attrs.define(eq=False)
class Turns(trio.abc.Instrument):
    """How often any task had its turn."""

    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> list[bytes]:
    """What came of an answer, a piece for each write at the least."""
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == httpx.codes.OK
        return [piece async for piece in answer.aiter_raw()]


async def ask(service: Service, model: str) -> list[bytes]:
    return await stream(service.client, "/v1/responses", {"model": model, "input": "hello", "stream": True})


async def written_transactions(service: Service) -> int:
    """How many transactions of the whole database server have written something."""
    return int(await service.pool.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))


@pytest.mark.slow
async def test_tokens_that_come_at_once_leave_at_once(service: Service) -> None:
    with trio.fail_after(WAIT_S):
        await ask(service, "echo-1")
        pieces = await ask(service, "echo-200")

    events = b"".join(pieces).count(b"\nevent: ")
    print(f"{events} events in {len(pieces)} writes")
    assert events == 200 + EVENTS_BESIDE_TOKENS
    assert len(pieces) <= WRITES_MAX, WHAT_TO_DO


@pytest.mark.slow
@pytest.mark.parametrize("streams", [True, False])
async def test_a_small_stored_response_costs_two_commits(service: Service, streams: bool) -> None:
    responses = 20
    body = {"model": "echo-3", "input": "hello", "stream": streams}
    with trio.fail_after(WAIT_S):
        await stream(service.client, "/v1/responses", body)
        before = await written_transactions(service)
        for _ in range(responses):
            await stream(service.client, "/v1/responses", body)
        commits = await written_transactions(service) - before

    print(f"{commits} commits for {responses} responses")
    assert commits >= COMMITS_MAX * responses, "they are not stored as they should be, or this counts wrongly"
    assert commits <= COMMITS_MAX * responses + HEARTBEATS_MAX, WHAT_TO_DO


@pytest.mark.slow
async def test_an_event_that_comes_by_itself_costs_few_turns_of_tasks(service: Service) -> None:
    body: dict[str, object] = {"stream": True}
    with trio.fail_after(WAIT_S):
        async with httpx.AsyncClient(base_url=service.simulator.base_url) as direct:
            served = await turns_per_event(service.client, "/v1/responses", body | {"input": "hello"})
            straight = await turns_per_event(direct, "/chat/completions", body | {"messages": []})

    print(f"{served - straight:.2f} turns of the server's tasks an event")
    assert served - straight <= TURNS_MAX, WHAT_TO_DO


async def turns_per_event(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> float:
    """How many turns all tasks, be they the client's or the upstream's, have for an event more."""
    counted = []
    for tokens in (1, 20, 100):  # the first makes the connections
        instrument = Turns()
        trio.lowlevel.add_instrument(instrument)
        pieces = await stream(client, path, body | {"model": f"slow-{tokens}-5"})
        trio.lowlevel.remove_instrument(instrument)
        counted.append((instrument.count, len(pieces)))
    _, few, many = counted
    return (many[0] - few[0]) / (many[1] - few[1])
