"""A world of each kind: with its rows in memory, and on PostgreSQL."""

from collections.abc import AsyncIterator

import pytest
from tests.conformance.conftest import create_database, open_postgres_lab
from tests.machines.world import LoopWorld, open_world

from dwctl_trio.postgres.embedded import EmbeddedPostgres


@pytest.fixture(scope="session")
def machines_dsn(postgres_server: EmbeddedPostgres) -> str:
    """A migrated database; every response finds it empty."""
    return create_database(postgres_server, "machines")


@pytest.fixture(params=["memory", "postgres"])
def world_dsn(request: pytest.FixtureRequest) -> str | None:
    """Each kind of database in turn; None is the one in memory."""
    return None if request.param == "memory" else request.getfixturevalue("machines_dsn")


@pytest.fixture
async def world(world_dsn: str | None) -> AsyncIterator[LoopWorld]:
    """An upstream, tools and a database."""
    if world_dsn is None:
        async with open_world() as opened:
            yield opened
        return
    async with open_postgres_lab(world_dsn) as lab, open_world(lab) as opened:
        yield opened
