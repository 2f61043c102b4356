"""Migrations: applied once, all or nothing, by whoever is first; and the versions that a server refuses."""

import attrs
import pytest
import trio
from tests.postgres.conftest import CALL_S, open_connection

from dwctl_trio.config import Config
from dwctl_trio.domain.errors import StoreError, StoreUnavailable
from dwctl_trio.postgres import migrate as migrate_module
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.migrate import (
    Migration,
    SchemaVersionError,
    check_schema_version,
    load_migrations,
    migrate,
    read_schema_version,
)

NEWEST = len(load_migrations())
COMMAND = r"Run: dwctl-trio migrate$"
TABLES = "select array_agg(tablename::text order by tablename) from pg_tables where schemaname = 'public'"
OURS = [
    "api_keys", "daemons", "requests", "response_events", "response_steps", "retention_marks", "schema_migrations",
    "usage_records",
]  # fmt: skip
SET_VERSION = "update schema_migrations set version = $1 where version = (select max(version) from schema_migrations)"


@pytest.fixture
def broken_release(monkeypatch):
    """A release whose last migration fails half-way."""
    broken = Migration(version=NEWEST + 1, name="broken", text="create table half (a int); select 1 / 0")
    monkeypatch.setattr(migrate_module, "load_migrations", lambda: [*load_migrations(), broken])


# -- applying


async def test_an_empty_database_gets_the_whole_schema(connection):
    assert await read_schema_version(connection) == 0
    assert await migrate(connection) == NEWEST
    assert await read_schema_version(connection) == NEWEST
    assert await connection.fetchval(TABLES) == OURS
    await check_schema_version(connection)


async def test_what_was_applied_is_not_applied_again(connection):
    await migrate(connection)
    applied = await connection.fetch("select version, name, applied_at from schema_migrations")
    assert await migrate(connection) == 0
    assert await connection.fetch("select version, name, applied_at from schema_migrations") == applied
    assert [(row["version"], row["name"]) for row in applied] == [
        (migration.version, migration.name) for migration in load_migrations()
    ]


async def test_rows_of_the_first_release_are_there_after_all_later_migrations(connection, monkeypatch):
    first = load_migrations()[:1]
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module, "load_migrations", lambda: first)
        assert await migrate(connection) == 1
    columns = "id, owner, surface, model, upstream, upstream_model, service_tier, state, daemon_id, lease_expires_at"
    of_all = "gen_random_uuid(), 'blue', 'responses', 'm', 'u', 'm', 'flex'"
    await connection.execute(
        f"insert into requests ({columns}, started_at, finished_at, response_status)"
        f" values ({of_all}, 'processing', gen_random_uuid(), now(), now(), null, null),"
        f" ({of_all}, 'completed', null, null, now(), now(), 200), ({of_all}, 'canceled', null, null, null, now(), 499)"
    )
    log = "insert into response_events select id, $1, $2, 'x' from requests where state = 'completed'"
    for first_sequence, last_sequence in ((0, 3), (4, 7)):
        await connection.execute(log, first_sequence, last_sequence)
    look = "select id, owner, state, created_at from requests order by id"
    before = await connection.fetch(look)

    assert await migrate(connection) == NEWEST - 1

    assert await connection.fetch(look) == before
    logged = "select state, last_sequence from requests where last_sequence is not null"
    assert [tuple(row) for row in await connection.fetch(logged)] == [("completed", 7)]
    await check_schema_version(connection)


async def test_of_several_processes_that_migrate_at_once_one_does_it(guest_loop, postgres_dsn):
    counts = []

    async def migrate_one():
        async with open_connection(guest_loop, postgres_dsn) as connection:
            counts.append(await migrate(connection))

    with trio.fail_after(3 * CALL_S):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(migrate_one)
    assert sorted(counts) == [0, 0, 0, NEWEST]


async def test_a_migration_that_is_cut_off_leaves_the_next_one_free_to_go(guest_loop, postgres_dsn):
    async with open_connection(guest_loop, postgres_dsn) as first, open_connection(guest_loop, postgres_dsn) as second:
        with pytest.raises(StoreUnavailable):
            async with first.transaction():
                await migrate(first)
                first.terminate()
                await first.execute("select 1")
        assert await migrate(second) == NEWEST


@pytest.mark.usefixtures("broken_release")
async def test_a_migration_that_fails_leaves_nothing_of_itself_or_of_those_before_it(connection):
    with pytest.raises(StoreError, match="division by zero"):
        await migrate(connection)
    assert await connection.fetchval(TABLES) is None
    assert await read_schema_version(connection) == 0


@pytest.mark.usefixtures("broken_release")
async def test_a_migration_that_fails_leaves_an_older_schema_as_it_was(connection):
    for migration in load_migrations():
        await connection.execute(migration.text)
        await connection.execute(
            "insert into schema_migrations (version, name) values ($1, $2)", migration.version, migration.name
        )
    with pytest.raises(StoreError, match="division by zero"):
        await migrate(connection)
    assert await connection.fetchval(TABLES) == OURS
    assert await read_schema_version(connection) == NEWEST


@pytest.mark.parametrize("attempt", [migrate, check_schema_version])
async def test_what_postgresql_does_not_allow_is_one_error_that_says_so(connection, attempt):
    await connection.execute("create table schema_migrations (version int); create role stranger; set role stranger")
    with pytest.raises(StoreError, match=r"permission denied for .* \(42501\)$"):
        await attempt(connection)
    await connection.execute("reset role; drop role stranger")


async def test_tables_of_somebody_else_are_left_alone(connection):
    await connection.execute("create table requests (a int); insert into requests values (7)")
    with pytest.raises(StoreError, match='"requests" already exists'):
        await migrate(connection)
    assert await connection.fetchval(TABLES) == ["requests"]
    assert await connection.fetchval("select a from requests") == 7


# -- refusing


async def test_an_empty_database_is_refused_with_the_command_to_run(connection):
    with pytest.raises(SchemaVersionError, match=f"has schema version 0, .* needs {NEWEST}. Run: dwctl-trio migrate$"):
        await check_schema_version(connection)


async def test_an_older_schema_is_refused_with_the_command_to_run(connection):
    await migrate(connection)
    await connection.execute("delete from schema_migrations where version = $1", NEWEST)
    with pytest.raises(SchemaVersionError, match=COMMAND):
        await check_schema_version(connection)


async def test_a_newer_schema_is_refused_with_what_to_do(connection):
    await migrate(connection)
    await connection.execute(SET_VERSION, NEWEST + 1)
    with pytest.raises(SchemaVersionError, match="newer release has migrated it"):
        await check_schema_version(connection)


async def test_a_newer_schema_is_not_migrated(connection):
    await migrate(connection)
    await connection.execute(SET_VERSION, NEWEST + 1)
    with pytest.raises(SchemaVersionError, match="newer release"):
        await migrate(connection)
    assert await read_schema_version(connection) == NEWEST + 1


# -- as a server meets it


async def test_a_server_does_not_migrate_a_database_that_it_was_given(postgres_dsn):
    with pytest.raises(SchemaVersionError, match=COMMAND):
        async with open_database(Config(database_url=postgres_dsn)):
            raise AssertionError("the database was opened")


async def test_the_migrate_command_brings_a_given_database_up_to_date(postgres_dsn):
    config = Config(database_url=postgres_dsn)
    async with open_database(config, migrating=True):
        pass
    async with open_database(config) as pool:
        assert await pool.fetchval("select max(version) from schema_migrations") == NEWEST


@pytest.mark.slow
async def test_the_embedded_database_migrates_by_itself(server_dir):
    config = Config(data_dir=server_dir)
    with trio.fail_after(60):
        async with open_database(config) as pool:
            assert await pool.fetchval("select max(version) from schema_migrations") == NEWEST


async def test_migrations_are_numbered_from_one_without_gaps():
    assert [migration.version for migration in load_migrations()] == list(range(1, NEWEST + 1))
    assert all(attrs.astuple(migration)[2].strip() for migration in load_migrations())


async def test_who_waits_for_another_ones_migration_waits_no_longer_than_for_any_call(guest_loop, postgres_dsn):
    async with (
        open_connection(guest_loop, postgres_dsn) as holder,
        open_connection(guest_loop, postgres_dsn, call_s=0.1) as late,
        holder.transaction(),
    ):
        await holder.fetchval("select pg_advisory_xact_lock($1)", migrate_module._LOCK)
        with pytest.raises(StoreUnavailable):
            await migrate(late)
