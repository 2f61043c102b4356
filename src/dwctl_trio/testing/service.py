"""The whole service in one Trio process: simulator, server and store on real sockets and a real PostgreSQL."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import trio

from dwctl_trio.app import run_api
from dwctl_trio.config import Config, parse_config
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.testing.simulator import Simulator, open_simulator

HTTP_SERVER = "DWCTL_HTTP_SERVER"
"""The variable that says how connections are served, as for the real server: whole suites can be run either way."""

_CALM_RESPONSES = 10_000
"""Client, upstream and server share one loop here, and what the others cost is no overload of the server."""


@attrs.frozen(kw_only=True)
class Service:
    """A running server and what stands around it."""

    url: str
    """Of the server, without ``/v1``."""
    simulator: Simulator
    client: httpx.AsyncClient
    """With the server's URL as its base."""
    pool: Pool
    """Connections of the test's own to the server's database."""
    config: Config


def make_config(dsn: str, base_url: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A configuration without keys on a free port, in which any model name goes to *base_url*.

    Args:
        dsn: The database.
        base_url: The upstream's.
        overrides: Top-level keys of the configuration that differ; an upstream without a ``base_url`` gets this one.
    """
    document: dict[str, Any] = {
        "port": 0,
        "auth": {"mode": "none"},
        "database_url": dsn,
        "upstreams": {"simulator": {"base_url": base_url}},
        "models": [{"name": "*", "upstream": "simulator", "price": {"input_per_million": 1, "output_per_million": 2}}],
    }
    if HTTP_SERVER in os.environ:
        document["http_server"] = os.environ[HTTP_SERVER]
    document |= overrides or {}
    document["limits"] = {"calm_responses": _CALM_RESPONSES, **document.get("limits", {})}
    upstreams = {name: {"base_url": base_url, **upstream} for name, upstream in document["upstreams"].items()}
    return parse_config(document | {"upstreams": upstreams})


@asynccontextmanager
async def open_service(dsn: str, overrides: Mapping[str, Any] | None = None) -> AsyncIterator[Service]:
    """Run the service on the database *dsn*, which is migrated first, for the time of the block.

    Args:
        dsn: An empty or migrated database.
        overrides: As in ``make_config``.
    """
    async with open_simulator() as simulator:
        config = make_config(dsn, simulator.base_url, overrides)
        async with open_database(config, migrating=True) as pool, trio.open_nursery() as nursery:
            url = await nursery.start(run_api, config)
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
                yield Service(url=url, simulator=simulator, client=client, pool=pool, config=config)
            nursery.cancel_scope.cancel()
