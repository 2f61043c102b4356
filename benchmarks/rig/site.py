"""A site: PostgreSQL, the upstream, tools, the reference and the server, each a process of its own, for some minutes.

Rule 1: what is compared is measured by turns, a slice each, so that a noisy neighbour meets all of them.
Rule 2: whose CPU a figure is, is said: the target's, the upstream's, or the load generator's (this process).
"""

import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import yaml

from benchmarks.rig.load import Answer, Target
from benchmarks.rig.processes import Process, machine_cpu_s, open_process
from dwctl_trio.config import parse_config
from dwctl_trio.postgres.database import open_database
from dwctl_trio.postgres.embedded import open_embedded_postgres
from dwctl_trio.postgres.guest_loop import open_guest_loop
from dwctl_trio.postgres.trio_asyncpg import connect

FLOOR, REFERENCE, SERVER = "floor", "reference", "server"
"""Straight to the upstream; the bare Trio server; ours."""

TOOL = {"type": "dwctl:tool", "name": "lookup"}
"""What a request names to be offered the tool of every site."""

_SLICES = 3
_CALL_S = 30.0
_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_LIMITS = {
    "live_responses": 100_000,
    "owner_responses": 100_000,
    "calm_responses": 100_000,
    "turns": 1000,
}
"""Nobody is refused: what is measured is what they cost."""

_numbers = itertools.count(1)


@attrs.frozen(kw_only=True)
class Site:
    """The parts, running."""

    folder: Path
    postgres_dsn: str
    upstream: Process
    tools: Process
    reference: Process
    """One send for all events of an upstream's read."""
    reference_each: Process
    """One send an event."""
    server: Process

    def targets(self, *, each: bool = False) -> dict[str, Target]:
        """Floor, reference and server by role.

        Args:
            each: Whether the reference sends every event by itself.
        """
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        reference = self.reference_each if each else self.reference
        return {
            FLOOR: Target(process=self.upstream, path="/v1/chat/completions", body=chat, delta_sign=b'"content":"w'),
            REFERENCE: responses_target(reference),
            SERVER: responses_target(self.server),
        }


def responses_target(process: Process) -> Target:
    """*process* as what answers ``POST /v1/responses``."""
    sign = b"event: response.output_text.delta"
    return Target(process=process, path="/v1/responses", body={"input": "hi"}, delta_sign=sign)


Load: TypeAlias = Callable[[Target, int], Awaitable[Sequence[Answer]]]
"""Makes so many requests of a target."""


@attrs.frozen(kw_only=True)
class Cost:
    """What a load cost, in seconds, of CPU unless said otherwise, and what it was."""

    target_s: float
    upstream_s: float
    load_s: float
    machine_s: float
    """Of everything that runs on the machine, PostgreSQL and neighbours too."""
    elapsed_s: float
    """By the clock on the wall."""
    answers: Sequence[Answer]

    @property
    def events(self) -> int:
        """Of all answers."""
        return sum(answer.events for answer in self.answers)

    def us_per_event(self) -> float:
        """The target's."""
        return self.target_s * 1e6 / self.events

    def ms_per_request(self) -> float:
        """The target's."""
        return self.target_s * 1e3 / len(self.answers)


Costs: TypeAlias = dict[str, Cost]
"""By role."""


async def measure_cost(site: Site, target: Target, load: Callable[[], Awaitable[Sequence[Answer]]]) -> Cost:
    """Run *load*, which asks *target*, once."""
    target_s, upstream_s, load_s = target.process.cpu_s(), site.upstream.cpu_s(), time.process_time()
    machine_s, began_at = machine_cpu_s(), time.monotonic()
    answers = await load()
    return Cost(
        target_s=target.process.cpu_s() - target_s,
        upstream_s=site.upstream.cpu_s() - upstream_s,
        load_s=time.process_time() - load_s,
        machine_s=machine_cpu_s() - machine_s,
        elapsed_s=time.monotonic() - began_at,
        answers=answers,
    )


async def measure_costs(site: Site, targets: Mapping[str, Target], load: Load, *, count: int, warm_up: int) -> Costs:
    """Have *load* ask each of *targets* by turns.

    Args:
        site: Where.
        targets: By role.
        load: Makes so many requests of a target.
        count: Requests of each target that are measured; ``_SLICES`` turns share them.
        warm_up: Requests before them that are not.
    """
    costs: dict[str, list[Cost]] = {role: [] for role in targets}
    for target in targets.values():
        if warm_up:
            await load(target, warm_up)
    for _ in range(min(_SLICES, count)):
        for role, target in targets.items():
            costs[role].append(await measure_cost(site, target, partial(load, target, -(-count // _SLICES))))
    return {role: _sum(parts) for role, parts in costs.items()}


def _sum(costs: Iterable[Cost]) -> Cost:
    parts = list(costs)
    return Cost(
        target_s=sum(part.target_s for part in parts),
        upstream_s=sum(part.upstream_s for part in parts),
        load_s=sum(part.load_s for part in parts),
        machine_s=sum(part.machine_s for part in parts),
        elapsed_s=sum(part.elapsed_s for part in parts),
        answers=[answer for part in parts for answer in part.answers],
    )


@asynccontextmanager
async def open_site() -> AsyncIterator[Site]:
    """A site of one server with default settings but for limits that would refuse load."""
    with tempfile.TemporaryDirectory(prefix="dwctl-bench-") as directory:
        folder = Path(directory)
        folder.chmod(0o711)  # noqa: ASYNC240 - once, before anything is measured
        async with (
            open_embedded_postgres(folder / "data") as postgres,
            open_process("-m", "dwctl_trio", "simulator", "--port", "0") as upstream,
            open_process("-m", "benchmarks.rig.tools") as tools,
            open_process("-m", "benchmarks.reference_server", upstream.url, tools.url) as reference,
            open_process("-m", "benchmarks.reference_server", upstream.url, tools.url, "--each") as reference_each,
        ):
            site = Site(
                folder=folder,
                postgres_dsn=postgres.dsn,
                upstream=upstream,
                tools=tools,
                reference=reference,
                reference_each=reference_each,
                server=upstream,
            )
            async with open_server(site) as server:
                yield attrs.evolve(site, server=server)


@asynccontextmanager
async def open_server(site: Site, *arguments: str, **limits: float) -> AsyncIterator[Process]:
    """A further server, with a database of its own.

    Args:
        site: Whose upstream and tools it uses.
        arguments: Options of ``serve``.
        limits: By their names, beside those of every server of a site.
    """
    config = await prepare_server(site, **limits)
    async with open_process("-m", "dwctl_trio", "serve", "--config", str(config), *arguments) as server:
        yield server


async def prepare_server(site: Site, **limits: float) -> Path:
    """A new database, migrated, and the configuration of a server on it."""
    name = f"bench{next(_numbers)}"
    async with (
        open_guest_loop() as loop,
        aclosing(await connect(loop, site.postgres_dsn, call_s=_CALL_S)) as connection,
    ):
        await connection.execute(f"CREATE DATABASE {name}")
    document = _config(site, site.postgres_dsn.replace("/postgres?", f"/{name}?"), limits)
    async with open_database(parse_config(document), migrating=True):
        pass
    config = site.folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(document))
    return config


def _config(site: Site, dsn: str, limits: Mapping[str, float]) -> dict[str, Any]:
    tool = {"name": "lookup", "kind": "http", "url": f"{site.tools.url}/lookup", "description": "Looks up a city."}
    return {
        "port": 0,
        "auth": {"mode": "none"},
        "database_url": dsn,
        "upstreams": {"simulator": {"base_url": f"{site.upstream.url}/v1", "max_concurrency": 10_000}},
        "models": [{"name": "*", "upstream": "simulator"}],
        "tools": [{**tool, "parameters": _PARAMETERS, "idempotent": True, "allow_private": True}],
        "limits": {**_LIMITS, **limits},
        "log_level": "info",
    }
