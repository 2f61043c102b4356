"""What one statement costs the client's CPU: on held connections and through the pool, with 1 and 16 at a time.

Run: ``python -m benchmarks.database_driver [DSN]``; without a DSN an embedded server is started for it.

CPU microseconds are user and system time of this process divided by the statements; the server's are not in it. On a
shared machine they are steadier than statements per second. Each figure is the best of ``ROUNDS``.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import trio

from dwctl_trio.postgres.embedded import EmbeddedPostgresOptions, open_embedded_postgres
from dwctl_trio.postgres.guest_loop import GuestLoop, open_guest_loop
from dwctl_trio.postgres.pool import open_pool
from dwctl_trio.postgres.trio_asyncpg import connect

ROUNDS = 3
STATEMENTS = 6000
CALL_S = 30.0
LARGE_BYTES = 20_000_000

QUERY = "SELECT $1::int"
Statement = Callable[[str, int], Awaitable[object]]


@attrs.frozen(kw_only=True)
class Cost:
    """Of one statement."""

    cpu_us: float
    p50_ms: float


async def measure(statements: Sequence[Statement]) -> Cost:
    """Run ``STATEMENTS`` in all, one after another on each of *statements*."""
    each = STATEMENTS // len(statements)
    durations_s: list[float] = []

    async def repeat(statement: Statement) -> None:
        for number in range(each):
            started = time.perf_counter()
            await statement(QUERY, number)
            durations_s.append(time.perf_counter() - started)

    cpu_s = time.process_time()
    async with trio.open_nursery() as nursery:
        for statement in statements:
            nursery.start_soon(repeat, statement)
    cpu_s = time.process_time() - cpu_s
    return Cost(cpu_us=cpu_s / len(durations_s) * 1e6, p50_ms=statistics.median(durations_s) * 1e3)


async def best(statements: Sequence[Statement]) -> Cost:
    """The cheapest of ``ROUNDS``."""
    costs = [await measure(statements) for _ in range(ROUNDS)]
    return min(costs, key=lambda cost: cost.cpu_us)


async def report(loop: GuestLoop, dsn: str) -> None:
    """Print the table."""
    connections = [await connect(loop, dsn, call_s=CALL_S) for _ in range(16)]
    async with open_pool(loop, dsn, connections_max=16, wait_s=CALL_S, call_s=CALL_S) as pool:
        for at_a_time in (1, 16):
            held = await best([connection.fetchval for connection in connections[:at_a_time]])
            pooled = await best([pool.fetchval] * at_a_time)
            for name, cost in (("held connection", held), ("pool", pooled)):
                print(f"{name:16} c={at_a_time:2}  {cost.cpu_us:6.1f} CPU-us/statement  p50 {cost.p50_ms:.2f} ms")
        value = os.urandom(LARGE_BYTES)
        started = time.perf_counter()
        assert await pool.fetchval("SELECT $1::bytea", value) == value
        print(f"20 MB there and back: {time.perf_counter() - started:.2f} s")
    for connection in connections:
        await connection.aclose()


@asynccontextmanager
async def open_server() -> AsyncIterator[str]:
    """The DSN of the command line, or that of an embedded server."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with open_directory() as directory:
        async with open_embedded_postgres(directory / "database", EmbeddedPostgresOptions(durable=False)) as server:
            yield server.dsn


@contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary one that another user may pass through, as root's server runs as one."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


async def main() -> None:
    """Measure against one server."""
    async with open_server() as dsn, open_guest_loop() as loop:
        await report(loop, dsn)


if __name__ == "__main__":
    trio.run(main)
