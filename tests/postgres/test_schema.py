"""The schema against the tables of the domain: the same states, the same columns they need, the same end for ever."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from tests.conformance.conftest import CALL_S, create_database

from dwctl_trio.domain.lifecycle import (
    LEASED_STATES,
    REQUIRED_COLUMNS,
    ROW_MOVES,
    STEP_MOVES,
    TERMINAL_STATES,
    RowState,
)
from dwctl_trio.domain.steps import StepState
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.trio_asyncpg import Connection, connect

ERROR = """'{"type": "loop_error", "code": "server_error", "message": "It failed."}'"""
VALUES = {
    "daemon_id": "gen_random_uuid()",
    "lease_expires_at": "dwctl_now()",
    "deadline": "dwctl_now()",
    "started_at": "dwctl_now()",
    "finished_at": "dwctl_now()",
    "response_status": "200",
    "error": ERROR,
}
"""A value, as SQL, for each column that a state may ask for."""

DIGEST = "decode(repeat('00', 32), 'hex')"
CHANGES = {
    "state": "'pending'",
    "daemon_id": "gen_random_uuid()",
    "epoch": "epoch + 1",
    "response_status": "201",
    "error": """'{"type": "t", "code": "c", "message": "m"}'""",
    "finished_at": "finished_at + interval '1 s'",
    "owner": "'red'",
    "reclaims": "reclaims + 1",
    "request": "'[]'",
    "response": "'[]'",
    "tools": "'[]'",
    "last_sequence": "last_sequence + 1",
    "cancel_requested_at": "dwctl_now()",
    "deadline": "dwctl_now()",
}
"""Another value, as SQL, for columns of a terminal row."""
KEPT = {"request": "'{}'", "tools": "'{}'", "response": "'{}'", "last_sequence": "7"}
"""What retention may take away of a terminal row."""
STEP_REQUIRED: Mapping[StepState, frozenset[str]] = {
    StepState.PENDING: frozenset(),
    StepState.PROCESSING: frozenset({"started_at"}),
    StepState.COMPLETED: frozenset({"started_at", "finished_at"}),
    StepState.FAILED: frozenset({"finished_at", "error"}),
    StepState.CANCELED: frozenset({"finished_at"}),
}

STAY = {"started_at", "deadline"}
"""Columns that no move takes away."""
QUEUED = {"deadline": VALUES["deadline"]}
"""What a row that waits cannot be without."""

CONSTRAINT = "select pg_get_constraintdef(oid) from pg_constraint where conname = $1"
every_row_state = pytest.mark.parametrize("state", RowState)
every_step_state = pytest.mark.parametrize("state", StepState)


@pytest.fixture(scope="module")
def schema_dsn(postgres_server) -> str:
    return create_database(postgres_server, "schema")


@pytest.fixture
async def schema(schema_dsn: str) -> AsyncIterator[Connection]:
    """A connection to a migrated database, in a transaction that is rolled back."""
    async with open_guest_loop() as loop:
        connection = await connect(loop, schema_dsn, call_s=CALL_S)
        await connection.execute("begin")
        yield connection
        await connection.execute("rollback")


async def insert_row(schema: Connection, state: str, columns: Mapping[str, str]) -> Any:
    """Insert a row in *state* with *columns* set, each to an SQL expression; return its id."""
    identity = {"owner": "'blue'", "surface": "'responses'", "model": "'m'", "upstream": "'u'", "upstream_model": "'m'"}
    filled = identity | {"service_tier": "'auto'", "state": f"'{state}'", "id": f"'{uuid4()}'"} | dict(columns)
    return await schema.fetchval(
        f"insert into requests ({', '.join(filled)}) values ({', '.join(filled.values())}) returning id"
    )


async def insert_step(schema: Connection, state: str, columns: Mapping[str, str]) -> Any:
    row_id = await insert_row(schema, "pending", QUEUED)
    filled = {
        "id": f"'{uuid4()}'", "response_id": f"'{row_id}'", "sequence": "1", "kind": "'model_call'",
        "state": f"'{state}'",
    } | dict(columns)  # fmt: skip
    return await schema.fetchval(
        f"insert into response_steps ({', '.join(filled)}) values ({', '.join(filled.values())}) returning id"
    )


def needed(state: RowState) -> dict[str, str]:
    return {column: VALUES[column] for column in REQUIRED_COLUMNS[state]}


def step_needed(state: StepState) -> dict[str, str]:
    return {column: VALUES[column] for column in STEP_REQUIRED[state]}


# -- rows


@pytest.mark.parametrize(
    ("constraint", "states"), [("requests_state_known", RowState), ("response_steps_state_known", StepState)]
)
async def test_the_states_of_the_schema_are_those_of_the_domain(schema, constraint, states):
    definition = await schema.fetchval(CONSTRAINT, constraint)
    assert set(re.findall(r"'(\w+)'", definition)) == {state.value for state in states}


@every_row_state
async def test_a_row_with_what_its_state_needs_is_taken(schema, state):
    assert await insert_row(schema, state, needed(state)) is not None


@pytest.mark.parametrize(
    ("state", "column"),
    [(state, column) for state in RowState for column in sorted(REQUIRED_COLUMNS[state])],
)
async def test_a_row_without_a_column_that_its_state_needs_is_refused(schema, state, column):
    columns = needed(state)
    del columns[column]
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_row(schema, state, columns)


@pytest.mark.parametrize(
    ("state", "column"),
    [(state, column) for state in RowState for column in sorted(REQUIRED_COLUMNS[state])],
)
async def test_a_row_cannot_lose_a_column_that_its_state_needs(schema, state, column):
    row_id = await insert_row(schema, state, needed(state))
    with pytest.raises((asyncpg.CheckViolationError, asyncpg.ObjectNotInPrerequisiteStateError)):
        await schema.execute(f"update requests set {column} = null where id = $1", row_id)


@pytest.mark.parametrize(
    ("state", "column"),
    [
        (state, column)
        for state in RowState
        if state not in LEASED_STATES
        for column in ("daemon_id", "lease_expires_at")
    ],
)
async def test_a_row_that_nobody_works_on_has_neither_owner_nor_lease(schema, state, column):
    with pytest.raises(asyncpg.CheckViolationError, match="requests_leased_have_owner"):
        await insert_row(schema, state, needed(state) | {column: VALUES[column]})


@pytest.mark.parametrize(
    ("state", "column"),
    [
        (state, column)
        for state in RowState
        if state not in TERMINAL_STATES
        for column in ("finished_at", "response_status")
    ],
)
async def test_a_row_that_has_not_ended_has_no_end(schema, state, column):
    with pytest.raises(asyncpg.CheckViolationError, match="requests_finished"):
        await insert_row(schema, state, needed(state) | {column: VALUES[column]})


@pytest.mark.parametrize("state", [state for state in RowState if state is not RowState.FAILED])
async def test_only_a_failed_row_has_an_error(schema, state):
    with pytest.raises(asyncpg.CheckViolationError, match="requests_error"):
        await insert_row(schema, state, needed(state) | {"error": ERROR})


@pytest.mark.parametrize("state", ["queued", "PENDING", "", "cancelled"])
async def test_a_state_that_the_domain_does_not_know_is_refused(schema, state):
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_row(schema, state, {})


# -- moves


def cleared(state: RowState) -> str:
    """All that a move to *state* sets: what it needs to a value, the rest to null."""
    columns = {column: "null" for column in VALUES if column not in STAY} | needed(state)
    return ", ".join(f"{column} = {value}" for column, value in columns.items())


@pytest.mark.parametrize(
    ("state", "target"),
    [(state, target) for state, moves in ROW_MOVES.items() for target in sorted(set(moves.values()))],
)
async def test_every_move_of_the_domain_is_possible(schema, state, target):
    row_id = await insert_row(schema, state, needed(state))
    await schema.execute(f"update requests set state = '{target}', {cleared(target)} where id = $1", row_id)
    assert await schema.fetchval("select state from requests where id = $1", row_id) == target


@pytest.mark.parametrize(
    ("state", "target"), [(state, to) for state in sorted(TERMINAL_STATES) for to in RowState if to is not state]
)
async def test_nothing_leaves_a_terminal_state(schema, state, target):
    row_id = await insert_row(schema, state, needed(state))
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await schema.execute(f"update requests set state = '{target}', {cleared(target)} where id = $1", row_id)


@pytest.mark.parametrize(("column", "value"), CHANGES.items())
@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
async def test_no_column_of_a_terminal_row_can_be_changed(schema, state, column, value):
    row_id = await insert_row(schema, state, needed(state) | KEPT)
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await schema.execute(f"update requests set {column} = {value} where id = $1", row_id)


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
async def test_retention_may_empty_the_bodies_of_a_terminal_row(schema, state):
    row_id = await insert_row(schema, state, needed(state) | KEPT)
    emptied = ", ".join(f"{column} = null" for column in KEPT)
    assert await schema.execute(f"update requests set {emptied} where id = $1", row_id) == "UPDATE 1"


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
async def test_a_terminal_row_can_be_deleted_with_its_steps_and_events(schema, state):
    step_id = await insert_step(schema, "pending", {})
    row_id = await schema.fetchval("select response_id from response_steps where id = $1", step_id)
    await schema.execute("insert into response_events values ($1, 0, 1, 'x')", row_id)
    await schema.execute(f"update requests set state = '{state}', {cleared(state)} where id = $1", row_id)
    assert await schema.execute("delete from requests where id = $1", row_id) == "DELETE 1"
    left = "select (select count(*) from response_steps) + (select count(*) from response_events)"
    assert await schema.fetchval(left) == 0


# -- what a row may hold


@pytest.mark.parametrize("key", ["type", "code", "message"])
async def test_an_error_has_a_type_a_code_and_a_message(schema, key):
    columns = needed(RowState.FAILED) | {"error": f"({ERROR}::jsonb - '{key}')"}
    with pytest.raises(asyncpg.CheckViolationError, match="error"):
        await insert_row(schema, RowState.FAILED, columns)


@pytest.mark.parametrize("status", [99, 600, -1, 0])
async def test_a_response_status_is_an_http_status(schema, status):
    with pytest.raises(asyncpg.CheckViolationError, match="response_status"):
        await insert_row(schema, RowState.COMPLETED, needed(RowState.COMPLETED) | {"response_status": str(status)})


@pytest.mark.parametrize("column", ["request", "tools", "response"])
@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
async def test_an_ended_row_that_is_not_stored_holds_no_body(schema, state, column):
    with pytest.raises(asyncpg.CheckViolationError, match="requests_not_stored"):
        await insert_row(schema, state, needed(state) | {"store": "false", column: "'{}'"})


@pytest.mark.parametrize(
    ("column", "value"),
    [("owner", "''"), ("surface", "'images'"), ("service_tier", "'batch'"), ("attempt", "-1"), ("epoch", "-1")],
)
async def test_a_column_takes_only_what_it_is_for(schema, column, value):
    with pytest.raises(asyncpg.CheckViolationError, match=column):
        await insert_row(schema, RowState.PENDING, QUEUED | {column: value})


async def test_an_idempotency_key_is_its_owners_alone(schema):
    key = QUEUED | {"idempotency_key": "'k'", "idempotency_digest": DIGEST}
    await insert_row(schema, RowState.PENDING, key)
    await insert_row(schema, RowState.PENDING, key | {"owner": "'red'"})
    await insert_row(schema, RowState.PENDING, QUEUED)
    await insert_row(schema, RowState.PENDING, QUEUED)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert_row(schema, RowState.PENDING, key)


@pytest.mark.parametrize(("status", "is_free"), [(200, False), (399, False), (400, True), (499, True), (503, True)])
async def test_an_idempotency_key_is_free_again_when_its_row_ended_with_an_http_error(schema, status, is_free):
    key = QUEUED | {"idempotency_key": "'k'", "idempotency_digest": DIGEST}
    await insert_row(schema, RowState.CANCELED, needed(RowState.CANCELED) | key | {"response_status": str(status)})
    if is_free:
        await insert_row(schema, RowState.PENDING, key)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert_row(schema, RowState.PENDING, key)


@pytest.mark.parametrize(
    "columns",
    [
        {"idempotency_key": "'k'"},
        {"idempotency_digest": DIGEST},
        {"idempotency_key": "'k'", "idempotency_digest": "''"},
    ],
)
async def test_an_idempotency_key_comes_with_the_digest_of_a_body(schema, columns):
    with pytest.raises(asyncpg.CheckViolationError, match="idempotency"):
        await insert_row(schema, RowState.PENDING, QUEUED | columns)


# -- steps


@every_step_state
async def test_a_step_with_what_its_state_needs_is_taken(schema, state):
    assert await insert_step(schema, state, step_needed(state)) is not None


@pytest.mark.parametrize(
    ("state", "column"), [(state, column) for state in StepState for column in sorted(STEP_REQUIRED[state])]
)
async def test_a_step_without_a_column_that_its_state_needs_is_refused(schema, state, column):
    columns = step_needed(state)
    del columns[column]
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_step(schema, state, columns)


@pytest.mark.parametrize(
    ("state", "column"),
    [(state, "error") for state in StepState if state is not StepState.FAILED]
    + [(state, "finished_at") for state in (StepState.PENDING, StepState.PROCESSING)],
)
async def test_a_step_without_an_end_or_a_failure_does_not_have_its_column(schema, state, column):
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_step(schema, state, step_needed(state) | {column: VALUES[column]})


@pytest.mark.parametrize(
    ("state", "target"), [(state, to) for state, moves in STEP_MOVES.items() for to in sorted(moves)]
)
async def test_every_move_of_a_step_is_possible(schema, state, target):
    step_id = await insert_step(schema, state, step_needed(state))
    sets = ", ".join(f"{column} = {value}" for column, value in step_needed(target).items())
    await schema.execute(f"update response_steps set state = '{target}', {sets} where id = $1", step_id)
    assert await schema.fetchval("select state from response_steps where id = $1", step_id) == target


@pytest.mark.parametrize(
    ("column", "value"), {"state": "'pending'", "result": "'[]'", "sequence": "2", "finished_at": "null"}.items()
)
@pytest.mark.parametrize("state", [state for state, moves in STEP_MOVES.items() if not moves])
async def test_a_terminal_step_never_changes_but_that_its_bodies_may_be_emptied(schema, state, column, value):
    step_id = await insert_step(schema, state, step_needed(state) | {"result": "'{}'"})
    await schema.execute("savepoint before")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await schema.execute(f"update response_steps set {column} = {value} where id = $1", step_id)
    await schema.execute("rollback to before")
    assert await schema.execute("update response_steps set result = null where id = $1", step_id) == "UPDATE 1"


async def test_only_the_words_of_a_terminal_steps_error_may_be_taken_away(schema):
    step_id = await insert_step(schema, StepState.FAILED, step_needed(StepState.FAILED))
    await schema.execute("savepoint before")
    for changed in ("'{}'", """error || '{"message": "x"}'""", """error || '{"message": "", "code": "x"}'""", "null"):
        with pytest.raises((asyncpg.ObjectNotInPrerequisiteStateError, asyncpg.CheckViolationError)):
            await schema.execute(f"update response_steps set error = {changed} where id = $1", step_id)
        await schema.execute("rollback to before")
    emptied = """update response_steps set error = error || '{"message": ""}' where id = $1"""
    assert await schema.execute(emptied, step_id) == "UPDATE 1"


async def test_only_a_row_that_waits_is_put_off(schema):
    for state in RowState:
        columns = needed(state) | {"not_before": "dwctl_now()"}
        if state is RowState.PENDING:
            assert await insert_row(schema, state, columns) is not None
            continue
        await schema.execute("savepoint before")
        with pytest.raises(asyncpg.CheckViolationError, match="requests_waiting"):
            await insert_row(schema, state, columns)
        await schema.execute("rollback to before")


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": "'tool_call'"},
        {"kind": "'tool_call'", "call_id": "'c'"},
        {"kind": "'tool_call'", "name": "'n'"},
        {"call_id": "'c'", "name": "'n'"},
        {"kind": "'message'"},
        {"sequence": "0"},
        {"state": "'claimed'"},
    ],
)
async def test_a_step_that_makes_no_sense_is_refused(schema, columns):
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_step(schema, StepState.PENDING, columns)


async def test_a_tool_call_has_a_call_id_and_a_name(schema):
    columns = {"kind": "'tool_call'", "call_id": "'c'", "name": "'n'"}
    assert await insert_step(schema, StepState.PENDING, columns) is not None


async def test_a_sequence_is_used_once_in_a_response(schema):
    step_id = await insert_step(schema, StepState.PENDING, {})
    row_id = await schema.fetchval("select response_id from response_steps where id = $1", step_id)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert_step(schema, StepState.PENDING, {"response_id": f"'{row_id}'"})


# -- the clock


@pytest.mark.parametrize(("offset", "seconds"), [("45 seconds", 45), ("-1 hour", -3600), ("", 0)])
async def test_a_session_variable_moves_the_one_clock(schema, offset, seconds):
    await schema.fetchval("select set_config('dwctl.clock_offset', $1, true)", offset)
    assert await schema.fetchval("select extract(epoch from dwctl_now() - now())::int") == seconds


async def test_without_the_variable_the_clock_is_the_databases(schema):
    assert await schema.fetchval("select dwctl_now() = now()") is True
