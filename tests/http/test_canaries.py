"""Marked words in keys, prompts and upstream errors: they turn up nowhere but where they belong."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from tests.http.canaries import (
    PROMPT,
    STORED_PROMPT,
    UPSTREAM_HEADER,
    UPSTREAM_KEY,
    WRONG_KEY,
    World,
    found_in,
    open_canaries,
    prompts,
    scrape,
    wait_ended,
)
from tests.http.conftest import DELTA, as_request, open_raw, output_text
from tests.http.tenants import dump_database

from dwctl_trio.observability.log import configure_logging, get_logger
from dwctl_trio.postgres.pool import Pool

FAULTS = (
    *("error-400", "error-401", "error-404", "error-429-1", "error-500", "error-503", "html-502", "empty-500"),
    *("echo-2-cut-each", "echo-2-reset-each", "echo-2-eof", "echo-2-midstream", "echo-2-garbage", "echo-2-badutf8"),
    *("echo-2-binary", "toolsbad-2", "echo-4-cutbyte-300"),
)

BAD_BODIES: tuple[object, ...] = (
    f'{{"model": "echo-1", "input": "{PROMPT}'.encode(),
    f'{{"model": "echo-1", "input": "{PROMPT}", "temperature": 1e999}}'.encode(),
    f'{{"model": "echo-1", "input": "{PROMPT} \\ud800"}}'.encode(),
    b"\xff" + PROMPT.encode(),
    PROMPT,
    [PROMPT],
    *({"model": "echo-1", **prompts(PROMPT), name: PROMPT} for name in ("temperature", "stream", "tools", "reasoning")),
    *({"model": "echo-1", **prompts(PROMPT), name: [{"type": PROMPT}]} for name in ("input", "text", "tool_choice")),
    {"model": PROMPT * 100, "input": PROMPT},
    {"model": "echo-1", "input": [{"type": "item_reference", "id": PROMPT}]},
    {"model": "echo-1", **prompts(PROMPT), "service_tier": PROMPT},
    {"model": "echo-1", **prompts(PROMPT), "previous_response_id": PROMPT},
)


@pytest.fixture
async def world(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_canaries(postgres_dsn, tmp_path) as world:
        yield world


@asynccontextmanager
async def refusing(pool: Pool, condition: str) -> AsyncIterator[None]:
    """PostgreSQL refuses rows of ``requests`` unless *condition* holds, with a message that quotes the row."""
    await pool.execute(f"alter table requests add constraint canary check ({condition}) not valid")
    yield
    await pool.execute("alter table requests drop constraint canary")


@pytest.mark.slow
async def test_no_key_and_no_word_of_an_upstream_is_in_an_answer_a_log_a_metric_or_a_row(world: World) -> None:
    for model in FAULTS:
        for stream in (False, True):
            await world.create(model, **prompts(STORED_PROMPT), stream=stream)
    for headers in ({"authorization": f"Bearer {WRONG_KEY}"}, {"authorization": WRONG_KEY}, {"x-api-key": world.key}):
        await world.post({"model": "echo-1", "input": "hello"}, headers)
    stored = [answer.headers["x-response-id"] for answer in world.answers if "x-response-id" in answer.headers]
    for name in stored:
        world.answers.append(await world.http.get(f"/v1/responses/{name}", headers=world.authorization))
    told = [answer.text + str(answer.headers) for answer in world.answers]
    logs, metrics, dump = world.logs(), await scrape(world), await dump_database(world)

    sent = str([dict(request.headers) for request in world.simulator.requests])
    assert found_in(sent, [UPSTREAM_KEY, UPSTREAM_HEADER]) == [UPSTREAM_KEY, UPSTREAM_HEADER], "they were in play"
    assert len(stored) >= len(FAULTS)
    assert {word for text in told for word in found_in(text, world.secrets())} == set()
    assert found_in(logs + metrics + dump, world.secrets()) == []
    print(
        f"{len(told)} answers, {len(world.server.log)} lines of log, {len(metrics)} bytes of metrics,"
        f" {len(dump)} bytes of rows: no key, no upstream"
    )


@pytest.mark.slow
async def test_no_word_of_a_prompt_is_in_a_refusal_a_log_or_a_metric(world: World) -> None:
    for body in BAD_BODIES:
        answer = await world.post(body, world.authorization)
        assert 400 <= answer.status_code < 500, (body, answer.text)
    for model in FAULTS:
        await world.create(model, **prompts(PROMPT))
    await world.create("parrot", **prompts(PROMPT))
    refusals = [answer.text for answer in world.answers if answer.status_code >= 400]
    logs, metrics = world.logs(), await scrape(world)

    assert len(refusals) > len(BAD_BODIES)
    assert [text for text in refusals if PROMPT in text] == []
    assert found_in(logs + metrics, [PROMPT]) == []
    assert PROMPT in world.answers[-1].text, "the one answer that says it again"


@pytest.mark.slow
async def test_a_response_that_is_not_stored_leaves_no_word_in_the_database_at_any_time(world: World) -> None:
    dumps = []
    answer = await world.create("parrot", **prompts(PROMPT), store=False)
    said = output_text(answer.json())
    for model in (*FAULTS, "parrot", "reasoning-2-3", "echo-2-length"):
        await world.create(model, **prompts(PROMPT), store=False, stream=True)
    async with open_raw(world) as client:
        body = {"model": "pause-1-4", **prompts(PROMPT), "store": False, "stream": True}
        await client.send(as_request(body, f"Authorization: Bearer {world.key}"))
        await client.read_until(DELTA)
        dumps.append(await dump_database(world))
    await wait_ended(world)
    dumps.append(await dump_database(world))
    await world.create("parrot", **prompts(STORED_PROMPT))
    proof = await dump_database(world)

    assert PROMPT in said
    assert [PROMPT in dump for dump in dumps] == [False, False]
    assert proof.count(STORED_PROMPT) > 8, "in the request, the response, the step and the events"


@pytest.mark.slow
async def test_of_a_conversation_that_is_not_stored_further_no_word_stays(world: World) -> None:
    first = (await world.create("parrot", **prompts(STORED_PROMPT))).json()
    item = first["output"][0]["id"]
    reference = {"type": "item_reference", "id": item}
    asked = prompts(PROMPT)
    for way in ({}, {"stream": True}, {"service_tier": "flex"}, {"service_tier": "flex", "stream": True}):
        for fields in ({"previous_response_id": first["id"]}, {"input": [reference, *asked["input"]]}):
            answer = await world.create("parrot", **{**asked, **fields, **way}, store=False)
            assert answer.status_code == 200
            assert PROMPT in answer.text
    await wait_ended(world)
    rows = await world.pool.fetch("select * from requests where not store")
    # The events of the queue's outlive it for a client that waits.
    await world.pool.execute(
        "delete from response_events where response_id in (select id from requests where not store)"
    )
    dump = await dump_database(world)

    assert len(rows) == 8
    assert {row["previous_response_id"] for row in rows} == {None}
    assert STORED_PROMPT in dump
    assert PROMPT not in dump


@pytest.mark.slow
async def test_what_postgresql_says_of_a_row_that_it_refuses_is_in_no_answer_and_no_log(world: World) -> None:
    async with refusing(world.pool, "model <> 'echo-9'"):
        for stream in (False, True):
            opening = await world.create("echo-9", **prompts(PROMPT), stream=stream)
            assert opening.status_code >= 500
    async with refusing(world.pool, "state <> 'completed'"):
        for stream in (False, True):
            await world.create("parrot", **prompts(PROMPT), stream=stream)
    refused = [answer.text for answer in world.answers]

    assert found_in(refused[0] + refused[1], [PROMPT, "constraint", "requests"]) == []
    assert "constraint" not in refused[2] + refused[3]
    assert found_in(world.logs(), [PROMPT, "Failing row"]) == []
    assert "terminal_write_refused" in world.server.events, "PostgreSQL was asked and refused"


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_a_logged_fault_does_not_show_what_was_worked_on(stream: io.StringIO) -> None:
    def work(body: str) -> None:
        raise ZeroDivisionError(len(body))

    before = structlog.get_config()
    configure_logging(stream)
    try:
        work(f"{PROMPT} in a local variable")
    except ZeroDivisionError:
        get_logger("canary").exception("fault")
    finally:
        structlog.configure(**before)

    assert "ZeroDivisionError" in stream.getvalue()
    assert "in work" in stream.getvalue()
    assert PROMPT not in stream.getvalue()
