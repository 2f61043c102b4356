"""API keys in memory: the verified fake of ``postgres/keys.py``."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from dwctl_trio.ports import ApiKey
from dwctl_trio.testing.memory_database import MemoryDatabase
from dwctl_trio.testing.memory_rows import MemoryKey, refusal

_KEY_PREFIX = "sk-dwctl-"
_SHOWN_CHARACTERS = len(_KEY_PREFIX) + 6
_numbers = itertools.count(1)


class MemoryKeyStore:
    """Keeps ``ports.KeyStore``, and what the operator's commands need beyond it; its keys are guessable."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """See ``ports.KeyStore``."""
        await trio.lowlevel.checkpoint()
        found = self.database.keys.get(digest)
        return found.key if found is not None and found.revoked_at is None else None

    async def create_key(self, owner: str) -> str:
        """A new key for *owner*, who has a name."""
        await trio.lowlevel.checkpoint()
        if not owner:
            raise refusal("a CHECK constraint of api_keys")
        key = f"{_KEY_PREFIX}{next(_numbers):06}-of-a-test"
        shown = ApiKey(prefix=key[:_SHOWN_CHARACTERS], owner=owner)
        digest = hashlib.sha256(key.encode()).digest()
        self.database.keys[digest] = MemoryKey(key=shown, created_at=self.database.now())
        await trio.lowlevel.checkpoint()
        return key

    async def list_keys(self) -> Sequence[Any]:
        """All keys, newest first: ``prefix``, ``owner``, ``created_at``, ``revoked_at``."""
        await trio.lowlevel.checkpoint()
        newest_first = sorted(self.database.keys.values(), key=lambda found: (-found.created_at, found.key.prefix))
        return [
            {
                "prefix": found.key.prefix,
                "owner": found.key.owner,
                "created_at": found.created_at,
                "revoked_at": found.revoked_at,
            }
            for found in newest_first
        ]

    async def revoke_key(self, prefix: str) -> str | None:
        """Revoke the live key with this *prefix*; its owner, or None if there is none."""
        await trio.lowlevel.checkpoint()
        for digest, found in self.database.keys.items():
            if found.key.prefix == prefix and found.revoked_at is None:
                self.database.keys[digest] = attrs.evolve(found, revoked_at=self.database.now())
                await trio.lowlevel.checkpoint()
                return found.key.owner
        return None
