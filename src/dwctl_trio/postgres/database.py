"""The configured database, embedded or the operator's own, ready to be used."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from dwctl_trio.config import Config
from dwctl_trio.postgres.embedded import open_embedded_postgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.migrate import check_schema_version, migrate
from dwctl_trio.postgres.pool import Pool, open_pool
from dwctl_trio.postgres.trio_asyncpg import connect


@asynccontextmanager
async def open_database(config: Config, *, migrating: bool | None = None) -> AsyncIterator[Pool]:
    """Connections to the configured database, with the schema of this release.

    Args:
        config: ``database_url``, or ``data_dir`` for the embedded default.
        migrating: Whether to bring the schema up to date; None: only if the database is our own, embedded one.

    Raises:
        SchemaVersionError: The schema is not this release's.
        StoreError: PostgreSQL cannot be started or reached.
    """
    limits = config.limits
    async with open_dsn(config) as dsn, open_guest_loop() as loop:
        async with aclosing(
            await connect(loop, dsn, call_s=limits.migration_s, open_s=limits.store_wait_s)
        ) as connection:
            if migrating or (migrating is None and config.database_url is None):
                await migrate(connection)
            await check_schema_version(connection)
        async with open_pool(
            loop,
            dsn,
            connections_max=limits.store_connections,
            wait_s=limits.store_wait_s,
            call_s=limits.store_call_s,
        ) as pool:
            yield pool


@asynccontextmanager
async def open_dsn(config: Config) -> AsyncIterator[str]:
    """The address of the configured database; the embedded one is started, or joined, for the time of the block.

    Raises:
        StoreError: The embedded PostgreSQL cannot be started.
    """
    if config.database_url is not None:
        yield config.database_url
        return
    async with open_embedded_postgres(config.data_dir) as embedded:
        yield embedded.dsn
