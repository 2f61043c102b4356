"""API keys in PostgreSQL: digests, never keys."""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

from dwctl_trio.ports import ApiKey
from dwctl_trio.postgres.pool import Pool
from dwctl_trio.postgres.queries import load_query, refusals

KEY_PREFIX = "sk-dwctl-"
_SECRET_BYTES = 32
SHOWN_CHARACTERS = len(KEY_PREFIX) + 6
"""Of a key, as its prefix: enough to tell keys apart, far too little to be one."""


class PostgresKeyStore:
    """Keeps ``ports.KeyStore``, and what the operator's commands need beyond it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """See ``ports.KeyStore``."""
        with refusals("find_api_key"):
            row = await self._pool.fetchrow(load_query("find_api_key").text, digest, retry=True)
        return None if row is None else ApiKey(prefix=row["prefix"], owner=row["owner"])

    async def create_key(self, owner: str) -> str:
        """A new key for *owner*, who has a name: returned here, and known to nobody afterwards."""
        key = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        query = load_query("create_api_key")
        digest = hashlib.sha256(key.encode()).digest()
        values = {"digest": digest, "prefix": key[:SHOWN_CHARACTERS], "owner": owner}
        with refusals(query.name):
            await self._pool.execute(query.text, *query.arguments(values))
        return key

    async def list_keys(self) -> Sequence[Any]:
        """All keys, newest first: ``prefix``, ``owner``, ``created_at``, ``revoked_at``."""
        with refusals("list_api_keys"):
            return await self._pool.fetch(load_query("list_api_keys").text, retry=True)

    async def revoke_key(self, prefix: str) -> str | None:
        """Revoke the live key with this *prefix*; its owner, or None if there is none."""
        with refusals("revoke_api_key"):
            owner: str | None = await self._pool.fetchval(load_query("revoke_api_key").text, prefix)
        return owner
