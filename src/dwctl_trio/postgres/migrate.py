"""The schema, as numbered migrations, each applied once under one lock.

Rule 1: a migration that was released never changes; a mistake is mended by the next number.
Rule 2: the server refuses a database whose version is not exactly its own, and says what to do.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

import asyncpg
import attrs

from dwctl_trio.domain.errors import StoreError
from dwctl_trio.postgres.queries import load_query
from dwctl_trio.postgres.trio_asyncpg import Connection

_LOCK = 7_236_518_040_291_003
"""The advisory lock of all migrations of this product; any number will do that nobody else uses."""

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class SchemaVersionError(StoreError):
    """The database's schema is not the one this release works with; the message names the command to run."""


@attrs.frozen(kw_only=True)
class Migration:
    """One numbered change of the schema."""

    version: int
    name: str
    text: str


@cache
def load_migrations() -> Sequence[Migration]:
    """All migrations, oldest first, numbered from 1 without gaps."""
    found = []
    for entry in files("dwctl_trio.postgres").joinpath("sql", "migrations").iterdir():
        named = _FILE_NAME.fullmatch(entry.name)
        if named is not None:
            text = entry.read_text(encoding="utf-8")
            found.append(Migration(version=int(named[1]), name=named[2], text=text))
    found.sort(key=lambda migration: migration.version)
    assert [migration.version for migration in found] == list(range(1, len(found) + 1)), "migrations have no gaps"
    return found


async def read_schema_version(connection: Connection) -> int:
    """The number of the last migration applied; 0 for an empty database."""
    if not await connection.fetchval(load_query("find_schema_migrations").text):
        return 0
    return int(await connection.fetchval(load_query("read_schema_version").text))


async def migrate(connection: Connection) -> int:
    """Apply what is missing, all or nothing; return how many migrations that was. Idempotent, in parallel too.

    Raises:
        SchemaVersionError: The database is newer than this release.
        StoreError: PostgreSQL refuses: a right is missing, or the database holds tables of somebody else.
    """
    with _refusals():
        return await _apply_missing(connection)


async def _apply_missing(connection: Connection) -> int:
    async with connection.transaction():
        await connection.fetchval(load_query("lock_migrations").text, _LOCK)
        version = await read_schema_version(connection)
        _refuse_newer(version)
        missing = load_migrations()[version:]
        for migration in missing:
            await connection.execute(migration.text)
            await connection.execute(load_query("record_migration").text, migration.version, migration.name)
    return len(missing)


async def check_schema_version(connection: Connection) -> None:
    """Return if the database has exactly the schema of this release.

    Raises:
        SchemaVersionError: It is older or newer.
        StoreError: PostgreSQL does not let us look.
    """
    expected = len(load_migrations())
    with _refusals():
        version = await read_schema_version(connection)
    _refuse_newer(version)
    if version < expected:
        raise SchemaVersionError(
            f"The database has schema version {version}, this release needs {expected}. Run: dwctl-trio migrate"
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell the operator, who alone gets to see this, what PostgreSQL says."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise StoreError(f"PostgreSQL refused the schema: {error} ({error.sqlstate})") from error


def _refuse_newer(version: int) -> None:
    expected = len(load_migrations())
    if version > expected:
        raise SchemaVersionError(
            f"The database has schema version {version}, this release knows only {expected}: a newer release has "
            "migrated it. Install that release (pip install --upgrade dwctl-trio), or restore a backup."
        )
