"""The usage records, summed up."""

from collections.abc import Sequence

import attrs

from dwctl_trio.ports import UsageLine
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals


async def read_usage(pool: Pool, *, since_s: float, by: str) -> Sequence[UsageLine]:
    """The usage of the last *since_s* seconds, a line for each ``model`` or ``owner``, the dearest first."""
    query = load_query(f"report_usage_by_{by}")
    with refusals(query.name):
        rows = await pool.fetch(query.text, since_s, retry=True)
    return [UsageLine(**{field.name: row[field.name] for field in attrs.fields(UsageLine)}) for row in rows]
