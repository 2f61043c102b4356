"""One connection: what its methods do when all goes well, and how errors, deadlines and lost servers show."""

import os
import signal

import asyncpg
import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.postgres.conftest import CALL_S, open_connection, open_front, wait_until_nothing_runs

from dwctl_trio.domain.errors import StoreError, StoreUnavailable
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.trio_asyncpg import connect


async def test_statements_return_what_asyncpg_returns(connection):
    assert await connection.execute("CREATE TABLE t (a int, b text)") == "CREATE TABLE"
    assert await connection.execute("INSERT INTO t VALUES ($1, $2)", 1, "one") == "INSERT 0 1"
    await connection.executemany("INSERT INTO t VALUES ($1, $2)", [(2, "two"), (3, None)])
    assert [tuple(row) for row in await connection.fetch("SELECT * FROM t ORDER BY a")] == [
        (1, "one"),
        (2, "two"),
        (3, None),
    ]
    assert (await connection.fetchrow("SELECT b FROM t WHERE a = $1", 2))["b"] == "two"
    assert await connection.fetchrow("SELECT b FROM t WHERE a = $1", 9) is None
    assert await connection.fetchval("SELECT count(*) FROM t") == 3


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute"])
async def test_every_statement_is_a_checkpoint(connection, method):
    with trio.testing.assert_checkpoints():
        await getattr(connection, method)("SELECT 1")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.binary(max_size=200_000),
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2000),
)
async def test_values_come_back_as_they_went(postgres_dsn, value, text, numbers):
    async with open_guest_loop() as loop, open_connection(loop, postgres_dsn) as connection:
        row = await connection.fetchrow("SELECT $1::bytea, $2::text, $3::bigint[]", value, text, numbers)
    assert tuple(row) == (value, text, numbers)


async def test_values_of_20_mb_pass_both_ways(connection):
    value = os.urandom(20_000_000)
    assert await connection.fetchval("SELECT $1::bytea", value) == value


async def test_other_tasks_run_while_a_large_value_passes(connection):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await connection.fetchval("SELECT $1::bytea", bytes(20_000_000))
        nursery.cancel_scope.cancel()
    assert turns > 20


async def test_a_block_that_ends_well_is_committed_and_one_that_fails_is_not(connection):
    await connection.execute("CREATE TABLE t (a int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(LookupError):
        async with connection.transaction("serializable"):
            await connection.execute("INSERT INTO t VALUES (2)")
            raise LookupError
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (3)")
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (4)")
                await connection.execute("SELECT 1/0")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (5)")
    assert [row["a"] for row in await connection.fetch("SELECT a FROM t ORDER BY a")] == [1, 3, 5]
    assert connection.is_reusable()


async def test_a_commit_that_fails_leaves_no_transaction(connection):
    await connection.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(asyncpg.UniqueViolationError):
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1), (1)")
    assert connection.is_reusable()


async def test_a_transaction_on_a_lost_connection_ends_with_its_own_error(connection, guest_loop, postgres_dsn):
    async with open_connection(guest_loop, postgres_dsn) as other:
        with pytest.raises(StoreUnavailable):
            async with connection.transaction():
                await other.execute("SELECT pg_terminate_backend($1)", connection.server_pid)
                await connection.execute("SELECT 1")
    assert connection.is_closed()


async def test_a_cursor_yields_every_row_once(connection):
    async with connection.transaction():
        numbers = [row[0] async for row in connection.cursor("SELECT generate_series(1, $1::int)", 1234, rows=100)]
        assert numbers == list(range(1, 1235))
        assert [row async for row in connection.cursor("SELECT 1 WHERE false")] == []
    with pytest.raises(asyncpg.NoActiveSQLTransactionError):
        async for _ in connection.cursor("SELECT 1"):
            pass


async def test_copy_moves_bulk_data_both_ways(connection):
    await connection.execute("CREATE TABLE t (a int, b text)")
    records = [(number, f"row {number}") for number in range(50_000)]
    assert await connection.copy_records("t", records, columns=["a", "b"]) == "COPY 50000"
    chunks = []
    await connection.copy_out("SELECT * FROM t ORDER BY a", write=chunks.append)
    assert b"".join(chunks).splitlines()[49_999] == b"49999\trow 49999"
    await connection.execute("TRUNCATE t")
    assert await connection.copy_in("t", chunks) == "COPY 50000"


async def test_a_copy_whose_source_fails_leaves_the_connection_usable(connection):
    def fail():
        yield b"1\n"
        raise LookupError("no more")

    await connection.execute("CREATE TABLE t (a int)")
    with pytest.raises(LookupError):
        await connection.copy_in("t", fail())
    assert await connection.fetchval("SELECT count(*) FROM t") == 0


async def test_notifications_reach_the_callback_in_the_trio_thread(connection, guest_loop, postgres_dsn):
    send_payloads, payloads = trio.open_memory_channel(10)

    async with open_connection(guest_loop, postgres_dsn) as listener:
        await listener.add_listener("news", send_payloads.send_nowait)
        for number in range(3):
            await connection.execute("SELECT pg_notify('news', $1)", str(number))
            assert await payloads.receive() == str(number)
        assert not listener.is_reusable()


async def test_a_listener_that_fails_is_logged_and_is_called_again(connection):
    called = trio.Event()

    def fail_at_first(payload):
        if payload == "first":
            raise ValueError(payload)
        called.set()

    with structlog.testing.capture_logs() as logs:
        await connection.add_listener("news", fail_at_first)
        await connection.execute("NOTIFY news, 'first'")
        await connection.execute("NOTIFY news, 'second'")
        await called.wait()
    assert [repr(entry["exc_info"]) for entry in logs] == ["ValueError('first')"]


async def test_the_end_of_a_listening_connection_is_noticed_without_a_call(connection, guest_loop, postgres_dsn):
    async with open_connection(guest_loop, postgres_dsn) as listener:
        await listener.add_listener("news", print)
        await connection.execute("SELECT pg_terminate_backend($1)", listener.server_pid)
        with trio.fail_after(CALL_S):
            await listener.wait_closed()
        assert listener.is_closed()


async def test_errors_of_sql_pass_unchanged_and_harm_nothing(connection):
    await connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
    await connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(asyncpg.UniqueViolationError) as violation:
        await connection.execute("INSERT INTO t VALUES ($1)", 1)
    assert violation.value.constraint_name == "t_pkey"
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await connection.execute("SELEKT")
    with pytest.raises(asyncpg.DataError):
        await connection.execute("SELECT $1::int", "not a number")
    assert await connection.fetchval("SELECT 1") == 1
    assert connection.is_reusable()


async def test_a_call_that_takes_too_long_is_an_unavailable_store_and_is_cancelled_on_the_server(
    connection, guest_loop, postgres_dsn
):
    async with open_connection(guest_loop, postgres_dsn, call_s=0.05) as hasty:
        with pytest.raises(StoreUnavailable) as unavailable:
            await hasty.execute("SELECT pg_sleep(60)")
        assert unavailable.value.__cause__ is None
        await wait_until_nothing_runs(connection)
        assert await hasty.fetchval("SELECT 1") == 1


async def test_each_call_has_its_whole_time_however_late_it_begins(guest_loop, postgres_dsn):
    async with open_connection(guest_loop, postgres_dsn, call_s=0.2) as connection:
        for _ in range(4):  # together longer than one call may take
            await connection.execute("SELECT pg_sleep(0.08)")
        started = trio.current_time()
        with pytest.raises(StoreUnavailable):
            await connection.execute("SELECT pg_sleep(60)")
        assert 0.2 <= trio.current_time() - started < 1
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_killed_server_process_is_an_unavailable_store_with_its_cause(connection, guest_loop, postgres_dsn):
    async with open_connection(guest_loop, postgres_dsn) as victim:
        with pytest.raises(StoreUnavailable) as unavailable:
            await victim.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert isinstance(unavailable.value.__cause__, asyncpg.PostgresError)
        with pytest.raises(StoreUnavailable):
            await victim.fetchval("SELECT 1")
        with pytest.raises(StoreUnavailable):
            async for _ in victim.cursor("SELECT 1"):
                pass
        assert victim.is_closed()


async def test_a_reset_connection_is_an_unavailable_store(guest_loop, postgres_dsn):
    async with open_front(postgres_dsn) as front:
        connection = await connect(guest_loop, front.dsn("postgres"), call_s=CALL_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.reset_all)
            with pytest.raises(StoreUnavailable):
                await connection.execute("SELECT pg_sleep(60)")
        assert connection.is_closed()


@pytest.mark.parametrize("dsn", ["postgresql://u@/d?host=/nonexistent", "postgresql://u@127.0.0.1:1/d?sslmode=disable"])
async def test_no_server_is_an_unavailable_store(guest_loop, dsn):
    with pytest.raises(StoreUnavailable) as unavailable:
        await connect(guest_loop, dsn, call_s=CALL_S)
    assert isinstance(unavailable.value.__cause__, OSError)


async def test_a_refused_login_is_an_unavailable_store(guest_loop, postgres_dsn):
    with pytest.raises(StoreUnavailable) as unavailable:
        await connect(guest_loop, postgres_dsn.replace("postgres@", "nobody_of_that_name@"), call_s=CALL_S)
    assert isinstance(unavailable.value.__cause__, asyncpg.InvalidAuthorizationSpecificationError)


async def test_two_tasks_cannot_use_one_connection_at_once(connection):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "SELECT pg_sleep(60)")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connection.in_use
        with pytest.raises(asyncpg.InterfaceError):
            await connection.execute("SELECT 1")
        nursery.cancel_scope.cancel()
    assert await connection.fetchval("SELECT 1") == 1


async def test_closing_cancels_what_is_under_way(connection, guest_loop, postgres_dsn):
    other = await connect(guest_loop, postgres_dsn, call_s=CALL_S)
    async with trio.open_nursery() as nursery:

        async def sleep():
            with pytest.raises(StoreUnavailable):
                await other.execute("SELECT pg_sleep(60)")

        nursery.start_soon(sleep)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await other.aclose()
    assert other.is_closed()
    await wait_until_nothing_runs(connection)
    await other.aclose()
    other.terminate()


async def test_at_the_end_of_the_loop_its_connections_are_closed(postgres_dsn):
    async with open_guest_loop() as loop:
        connection = await connect(loop, postgres_dsn, call_s=CALL_S)
    assert connection.is_closed()
    with pytest.raises(StoreUnavailable):
        await connection.fetchval("SELECT 1")


def test_two_trio_runs_in_one_process_each_talk_to_the_database(postgres_dsn):
    async def main():
        async with open_guest_loop() as loop, open_connection(loop, postgres_dsn) as connection:
            return await connection.fetchval("SELECT 1")

    assert [trio.run(main), trio.run(main)] == [1, 1]


def test_control_c_during_a_statement_cancels_it_and_ends_the_run(postgres_dsn):
    async def main():
        async with (
            open_guest_loop() as loop,
            open_connection(loop, postgres_dsn) as connection,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(connection.execute, "SELECT pg_sleep(60)")
            await trio.testing.wait_all_tasks_blocked(0.01)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(BaseExceptionGroup) as ended:
        trio.run(main)
    assert ended.group_contains(KeyboardInterrupt)


async def test_a_url_that_makes_no_sense_is_said_to_be_so_without_its_words() -> None:
    async with open_guest_loop() as loop:
        with pytest.raises(StoreError, match="the database URL cannot be used") as caught:
            await connect(loop, "postgresql://user:secret@host:notaport/x", call_s=1)
    assert "secret" not in str(caught.value)
